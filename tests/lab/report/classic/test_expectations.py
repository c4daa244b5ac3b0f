from collections.abc import Sequence

from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import CellRecord
from steadynorm.lab.report.classic.expectations import expectations
from steadynorm.lab.report.classic.summary import summarise
from steadynorm.lab.report.document import Expectation
from tests.support.classic import cell, made_record

BATCH = [
    cell("batch_norm", seed, (0.1, 0.5, 0.9 + 0.01 * seed, 0.9, 0.9 + 0.01 * seed), drift=(0.1, 0.1, 0.1))
    for seed in (0, 1)
]
ALIKE = [cell("none", 0, (0.1, 0.1, 0.1, 0.6, 0.89)), cell("none", 1, (0.1, 0.1, 0.1, 0.6, 0.904))]
LOST = [cell("none", seed, (0.1, 0.1), diverged=True) for seed in (0, 1)]


def judged(cells: list[CellRecord], *, arms: Sequence[str] = ("batch_norm", "none")) -> tuple[Expectation, ...]:
    record = made_record(cells, arms=arms)
    return expectations([summarise(record, arm) for arm in arms], chance_of(record))


def verdicts(cells: list[CellRecord], **changes: Sequence[str]) -> list[str]:
    return [item.verdict for item in judged(cells, **changes)]


def test_all_is_met_where_batch_norm_is_ahead_in_everything() -> None:
    steady = [cell("batch_norm", seed, (0.1, 0.9, 0.9, 0.9, 0.9), width_ratio=(1.0, 1.5, 2.0)) for seed in (0, 1)]
    moving = [cell("none", seed, (0.1, 0.1, 0.1, 0.1, 0.8), drift=(1.0, 1.0, 1.0)) for seed in (0, 1)]
    assert verdicts([*steady, *moving]) == ["met"] * 4


def test_each_verdict_has_its_numbers_beside_it() -> None:
    plain = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8), drift=(0.5,) * 3, width_ratio=(7.0,) * 3) for seed in (0, 1)]
    sentences = [item.measured.replace("\N{NO-BREAK SPACE}", " ") for item in judged([*BATCH, *plain])]
    assert sentences[0] == "After the last step: 90.5 % with batch norm, 80.0 % without."
    assert sentences[1] == "First measured step there: 10 with batch norm, 30 without."
    assert sentences[2].endswith("of the middle sigmoid: 0.100 with batch norm, 0.500 without.")
    assert sentences[3].endswith("of the middle sigmoid: 3.00 with batch norm, 7.00 without.")


def test_what_batch_norm_does_worse_is_not_met() -> None:
    batch = [cell("batch_norm", seed, (0.1, 0.1, 0.1, 0.1, 0.8), drift=(1.0, 1.0, 1.0)) for seed in (0, 1)]
    plain = [cell("none", seed, (0.1, 0.9, 0.9, 0.9, 0.9), width_ratio=(1.0, 1.5, 2.0)) for seed in (0, 1)]
    assert verdicts([*batch, *plain]) == ["not met"] * 4


def test_overlapping_seeds_meet_no_expectation_and_it_is_said() -> None:
    first = judged([*BATCH, *ALIKE])[0]
    assert first.verdict == "not met"
    assert first.measured.replace("\N{NO-BREAK SPACE}", " ") == (
        "After the last step: 90.5 % with batch norm, 89.7 % without; the seeds' ranges overlap."
    )


def test_what_is_missing_is_not_measured() -> None:
    assert verdicts([]) == ["not measured"] * 4
    assert verdicts(BATCH) == ["not measured"] * 4
    assert verdicts(BATCH, arms=("batch_norm",)) == ["not measured"] * 4
    lost = judged([*BATCH, *LOST])
    assert [item.verdict for item in lost] == ["not measured"] * 4
    assert "The loss was not finite at step 10." in {item.measured for item in lost}


def test_networks_that_may_be_guessing_decide_nothing() -> None:
    plain = [cell("none", seed, (0.1, 0.1, 0.1, 0.1, (0.8, 0.11)[seed]), drift=(1.0,) * 3) for seed in (0, 1)]
    found = judged([*BATCH, *plain])
    assert {item.verdict for item in found} == {"not measured: at chance"}
    assert (
        found[0]
        .measured.replace("\N{NO-BREAK SPACE}", " ")
        .startswith("No normalization at 11.0 %, not surely above the 10.0 % of guessing. After the last step: 90.5 %")
    )
