import io
import json

from rich.console import Console

from steadynorm.reporting.results import read_summary, results_table, verdict_lines


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
