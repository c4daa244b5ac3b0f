import io

from rich.console import Console

from steadynorm.lab.results import results_table, verdict_lines


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
