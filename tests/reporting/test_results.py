import io
import json

import pytest
from rich.console import Console

from steadynorm.reporting.results import fitting_table, read_summary, results_table, verdict_lines


def shown(summary: dict[str, object]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=150).print(results_table(summary))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_the_table_of_a_summary_is_shown_cell_by_cell() -> None:
    table = {"columns": ["arm", "accuracy"], "rows": [["none", "50.0 % ± 1.0 %"], ["[b]", "diverged"]]}
    assert shown({"table": table}) == ["arm accuracy", "none 50.0 % ± 1.0 %", "[b] diverged"]


def test_verdicts_stand_before_their_claims() -> None:
    item = {"claim": "It is so.", "verdict": "not met", "measured": "It is not."}
    assert verdict_lines({"expectations": [item]}) == ["not met: It is so. It is not."]


def test_what_a_file_holds_cannot_steer_the_terminal() -> None:
    item = {"claim": "So\x1b[31m.", "verdict": "met\x07", "measured": "\x9b2J"}
    table = {"columns": ["arm\x1b"], "rows": [["none\x1b[2J"]]}
    summary = read_summary(json.dumps({"headline": "\x1b]0;title\x07", "table": table, "expectations": [item]}))
    assert summary["headline"] == r"\x1b]0;title\x07"
    assert shown(summary) == [r"arm\x1b", r"none\x1b[2J"]
    assert verdict_lines(summary) == [r"met\x07: So\x1b[31m. \x9b2J"]


@pytest.mark.parametrize("width", [20, 40, 60])
def test_in_a_narrow_terminal_each_cell_has_a_line_and_nothing_is_cut(width: int) -> None:
    columns, row = (
        ["arm", "validation accuracy", "its p95/p5"],
        ["self_tuned_batch_norm", "83.8 % (83.6 to 84.2)", "1.54"],
    )
    summary = {"table": {"columns": columns, "rows": [row, ["none", "80.1 %", "1.76"]]}}
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(fitting_table(summary, console))
    text = out.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    if width == 40:
        assert [line.strip() for line in text.splitlines()[:3]] == [
            "arm            self_tuned_batch_norm",
            "validation     83.8 % (83.6 to 84.2)",
            "accuracy",
        ]
    assert "".join(text.split()).count("self_tuned_batch_norm") == 1  # broken where it must, whole
