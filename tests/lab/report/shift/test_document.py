from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.records import CellRecord, Factor, Measurement, Record
from steadynorm.lab.report.shift.document import make_report
from steadynorm.lab.report.shift.summary import by_stream, kept_share, mean_error, shown, swap_changes, worst
from steadynorm.lab.report.shift.summary import decays as decays_of
from tests.support.records import check_page
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run

METHODS = ["stored", "batch", "gate"]
TRAINED = compare_run("several_decays", val_accuracy=[0.5, 0.8])


def cell(values: dict[str, float], images: float = 100, **factors: Factor) -> CellRecord:
    rows = [Measurement(subject=name, quantity="accuracy", value=value) for name, value in values.items()]
    if factors["part"] == "stream":
        rows.insert(0, Measurement(quantity="images", value=images))
    return CellRecord(factors=factors | {"seed": factors.get("seed", 0)}, measurements=tuple(rows), seconds=1.0)


def decayed(shift: str, severity: int, *accuracies: float) -> CellRecord:
    values = dict(zip(("0.9", "0.99"), accuracies, strict=True))
    return cell(values, part="decays", shift=shift, severity=severity)


def streamed(kind: str, shift: str, severity: int, *accuracies: float, seed: int = 0) -> CellRecord:
    values = dict(zip(METHODS, accuracies, strict=True))
    return cell(values, part="stream", kind=kind, shift=shift, severity=severity, seed=seed)


CELLS = [
    decayed("clean", 0, 0.8, 0.79),
    decayed("swapped_labels", 0, 0.65, 0.64),
    decayed("contrast", 5, 0.3, 0.2),
    streamed("iid", "clean", 0, 0.8, 0.79, 0.798),
    streamed("iid", "contrast", 5, 0.3, 0.6, 0.58),
    streamed("iid", "fog", 5, 0.4, 0.5, 0.5),
    streamed("iid", "mixed", 5, 0.4, 0.45, 0.45),
    streamed("class_ordered", "clean", 0, 0.8, 0.2, 0.8),
    streamed("class_ordered", "contrast", 5, 0.3, 0.15, 0.3),
]


def shift_record(cells: list[CellRecord], **changes: object) -> Record:
    config = {
        "methods": METHODS,
        "corruptions": ["contrast", "fog"],
        "severities": [5],
        "stream_images": 100,
        "stream_batch": 10,
        "epochs": 2,
    }
    return replace(compare_record([TRAINED], **(config | changes)), experiment="shift", cells=tuple(cells))


def verdicts(made: Record) -> list[str]:
    return [item.verdict for item in make_report(made).expectations]


def test_the_kept_share_is_of_the_gains_under_corruption() -> None:
    found = shown(shift_record(CELLS))
    assert kept_share(found, "gate") == pytest.approx((0.28 + 0.1) / (0.3 + 0.1))
    assert kept_share(found, "batch") == 1
    assert kept_share(found, "stored") == 0


def test_a_stream_on_which_batch_statistics_win_nothing_is_not_counted() -> None:
    found = shown(shift_record([*CELLS, streamed("iid", "jpeg_compression", 5, 0.5, 0.4, 0.5)]))
    assert kept_share(found, "gate") == pytest.approx(0.38 / 0.4)


def test_what_is_won_on_clean_images_is_not_counted() -> None:
    found = shown(shift_record([streamed("iid", "clean", 0, 0.7, 0.8, 0.7), *CELLS[4:]]))
    assert kept_share(found, "gate") == pytest.approx(0.38 / 0.4)


def test_the_worst_stream_is_found_among_all() -> None:
    found = shown(shift_record(CELLS))
    least = worst(found, "batch")
    assert (least.kind, least.shift, least.gain.mean) == ("class_ordered", "clean", pytest.approx(-0.6))
    assert worst(found, "gate").gain.mean == pytest.approx(-0.002)


def test_mixed_corruptions_are_a_kind_of_their_own() -> None:
    assert [one.severity for one in shown(shift_record(CELLS)) if one.kind == "mixed"] == [5, 5, 5]


def test_errors_are_averaged_over_streams() -> None:
    found = shown(shift_record(CELLS))
    mine = [one for one in found if (one.kind, one.method) == ("iid", "stored")]
    assert mean_error(mine) == pytest.approx((0.2 + 0.7 + 0.6) / 3)
    assert mean_error([]) is None


def test_gains_are_of_the_same_seed() -> None:
    cells = [streamed("iid", "fog", 5, 0.4, 0.5, 0.45), streamed("iid", "fog", 5, 0.6, 0.9, 0.8, seed=1)]
    batch = next(one for one in shown(shift_record(cells)) if one.method == "batch")
    assert (batch.gain.mean, batch.gain.low, batch.gain.high) == pytest.approx((0.2, 0.1, 0.3))


def test_the_summary_holds_each_stream_once() -> None:
    cells = [streamed("iid", "fog", 5, 0.4, 0.5, 0.45), streamed("iid", "fog", 5, 0.6, 0.9, 0.8, seed=1)]
    assert by_stream(shown(shift_record(cells))) == [
        {
            "kind": "iid",
            "shift": "fog",
            "severity": 5,
            "images": 100,
            "n": 2,
            "error": {"stored": 0.5, "batch": 0.3, "gate": 0.375},
            "gain": {"stored": [0, 0, 0], "batch": [0.2, 0.1, 0.3], "gate": [0.125, 0.05, 0.2]},
        }
    ]


def test_a_swap_of_labels_changes_each_decays_error() -> None:
    changes = swap_changes(decays_of(shift_record(CELLS)))
    assert changes == pytest.approx({"0.9": 0.15, "0.99": 0.15})


def test_the_verdicts_follow_the_numbers() -> None:
    assert verdicts(shift_record(CELLS)) == ["met", "met", "met", "met", "met"]


@pytest.mark.parametrize(
    ("replaced", "place", "verdict"),
    [
        ({1: decayed("swapped_labels", 0, 0.65, 0.60)}, 0, "not met"),
        ({4: streamed("iid", "contrast", 5, 0.7, 0.6, 0.7), 5: streamed("iid", "fog", 5, 0.5, 0.4, 0.5)}, 1, "not met"),
        ({7: streamed("class_ordered", "clean", 0, 0.1, 0.9, 0.1)}, 2, "not met"),
        ({8: streamed("class_ordered", "contrast", 5, 0.3, 0.15, 0.294)}, 3, "not met"),
        ({8: streamed("class_ordered", "contrast", 5, 0.3, 0.15, 0.296)}, 3, "met"),
        ({4: streamed("iid", "contrast", 5, 0.3, 0.6, 0.55)}, 4, "not met"),
    ],
)
def test_each_verdict_can_fall(replaced: dict[int, CellRecord], place: int, verdict: str) -> None:
    cells = [replaced.get(number, one) for number, one in enumerate(CELLS)]
    assert verdicts(shift_record(cells))[place] == verdict


def test_the_headline_says_what_the_gate_keeps_and_loses() -> None:
    said = make_report(shift_record(CELLS)).headline.replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "The gate keeps 95 % of what batch statistics win under corruption and loses at most 0.2 points to the stored "
        "ones on any stream"
    )


def test_the_survivor_is_the_decay_that_errs_least_under_corruption() -> None:
    section = next(one for one in make_report(shift_record(CELLS)).sections if one.key == "decays")
    text = section.blocks[1].text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith(
        "Under corruption the stored statistics of decay 0.9 err least, 70.0 % on average, and those of decay 0.99 "
        "most, 80.0 %: 10.0 points apart, where the corruption itself costs 50.0 points."
    )


@pytest.mark.parametrize(("published", "said"), [(1.0, "CIFAR-10-C's own files"), (0.0, "which they are not")])
def test_the_method_says_whose_corruptions_they_are(published: float, said: str) -> None:
    row = Measurement(quantity="published", value=published)
    cells = [replace(one, measurements=(*one.measurements, row)) for one in CELLS]
    assert any(said in line for line in make_report(shift_record(cells)).method)


@pytest.mark.parametrize(
    "made",
    [
        shift_record([]),
        shift_record(CELLS),
        shift_record(CELLS[:1]),
        shift_record(CELLS[:3]),
        shift_record([replace(one, measurements=(), seconds=None) for one in CELLS]),
        shift_record([cell({"batch": 0.5}, part="stream", kind="iid", shift="fog", severity=5)], methods=["batch"]),
    ],
    ids=["empty", "whole", "one cell", "decays alone", "waiting", "without stored ones"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_network_that_may_be_guessing_decides_nothing() -> None:
    made = shift_record(CELLS)
    report = make_report(replace(made, runs=(compare_run("several_decays", val_accuracy=[0.1, 0.105]),)))
    assert {item.verdict for item in report.expectations} == {"not measured: at chance"}
    assert report.headline.startswith("The network is no better than guessing (10.5")
