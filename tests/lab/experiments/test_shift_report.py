"""What the report of shift says of made-up numbers, and of the records in docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.experiments.shift import Condition, conditions, describe, kept_share, mean_error, worst
from steadynorm.reporting.records import Cell, Measurement, Record
from steadynorm.reporting.report import Figure, Table
from tests.support.documented import check_equals, content_of, few_values, record_of
from tests.support.records import check_page, summary_json
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run

METHODS = ["stored", "batch", "gate"]
TRAINED = compare_run("several_decays", val_accuracy=[0.5, 0.8])


def cell(values: dict[str, float], images: float = 1000, **factors: Any) -> Cell:
    rows = [Measurement(subject=name, quantity="accuracy", value=value) for name, value in values.items()]
    if factors["part"] == "stream":
        rows.insert(0, Measurement(quantity="images", value=images))
    return Cell(factors=factors | {"seed": factors.get("seed", 0)}, status="finished", measurements=tuple(rows))


def decayed(shift: str, severity: int, *accuracies: float) -> Cell:
    values = dict(zip(("0.9", "0.99"), accuracies, strict=True))
    return cell(values, part="decays", shift=shift, severity=severity)


def streamed(kind: str, shift: str, severity: int, *accuracies: float, seed: int = 0) -> Cell:
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
TWO_SEEDS = [streamed("iid", "fog", 5, 0.4, 0.5, 0.45), streamed("iid", "fog", 5, 0.6, 0.9, 0.8, seed=1)]


def shift_record(cells: list[Cell], **changes: object) -> Record:
    config = {
        "methods": METHODS,
        "corruptions": ["contrast", "fog"],
        "severities": [5],
        "stream_images": 100,
        "stream_batch": 10,
        "epochs": 2,
    }
    return replace(compare_record([TRAINED, *cells], **(config | changes)), experiment="shift")


def streams(cells: list[Cell] = CELLS) -> list[Condition]:
    return conditions(shift_record(cells), "stream")


def verdicts(made: Record) -> list[str]:
    return [item.verdict for item in describe(made).claims]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def figure(name: str, made: Record) -> Figure:
    return next(one for one in describe(made).figures if one.name == name)


def tables(short: str, made: Record) -> list[list[list[str]]]:
    """The cells of a section's tables, notes after a bar."""
    section = next(one for one in describe(made).sections if short in (one.short, one.title))
    found = [block for block in section.shown if isinstance(block, Table)]
    return [
        [[plain("|".join(filter(None, (one.text, one.note)))) for one in row] for row in each.rows] for each in found
    ]


def test_the_kept_share_is_of_the_gains_under_corruption() -> None:
    assert kept_share(streams(), "gate") == pytest.approx((0.28 + 0.1) / (0.3 + 0.1))
    assert kept_share(streams(), "batch") == 1
    assert kept_share(streams(), "stored") == 0


def test_a_stream_on_which_batch_statistics_win_nothing_is_not_counted() -> None:
    found = streams([*CELLS, streamed("iid", "jpeg_compression", 5, 0.5, 0.4, 0.5)])
    assert kept_share(found, "gate") == pytest.approx(0.38 / 0.4)


def test_what_is_won_on_clean_images_is_not_counted() -> None:
    found = streams([streamed("iid", "clean", 0, 0.7, 0.8, 0.7), *CELLS[4:]])
    assert kept_share(found, "gate") == pytest.approx(0.38 / 0.4)


def test_the_worst_stream_is_found_among_all() -> None:
    least = worst(streams(), "batch")
    assert (least.kind, least.shift, least.gain["batch"].mean) == ("class_ordered", "clean", pytest.approx(-0.6))
    assert worst(streams(), "gate").gain["gate"].mean == pytest.approx(-0.002)


def test_mixed_corruptions_are_a_kind_of_their_own() -> None:
    (mixed,) = [one for one in streams() if one.kind == "mixed"]
    assert (mixed.severity, list(mixed.error)) == (5, METHODS)


def test_errors_are_averaged_over_streams() -> None:
    mixed = [one for one in streams() if one.kind == "iid"]
    assert mean_error(mixed, "stored") == pytest.approx((0.2 + 0.7 + 0.6) / 3)
    assert describe(shift_record(CELLS)).table.rows[0][1].text == "50.0\N{NO-BREAK SPACE}%"


def test_gains_are_of_the_same_seed() -> None:
    (found,) = streams(TWO_SEEDS)
    gain = found.gain["batch"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.2, 0.1, 0.3))


def test_the_images_of_a_stream_are_those_that_every_seed_has() -> None:
    few = cell({"stored": 0.4}, images=80, part="stream", kind="iid", shift="fog", severity=5, seed=1)
    assert [one.images for one in streams([TWO_SEEDS[0], few])] == [80]


def test_the_summary_holds_each_stream_once() -> None:
    assert describe(shift_record(TWO_SEEDS)).findings["streams"] == [
        {
            "kind": "iid",
            "shift": "fog",
            "severity": 5,
            "images": 1000,
            "n": 2,
            "error": {"stored": 0.5, "batch": 0.3, "gate": 0.375},
            "gain": {"stored": [0, 0, 0], "batch": [0.2, 0.1, 0.3], "gate": [0.125, 0.05, 0.2]},
        }
    ]


def test_a_swap_of_labels_changes_each_decays_error() -> None:
    cells = [CELLS[0], decayed("swapped_labels", 0, 0.65, 0.63)]
    found = describe(shift_record(cells)).claims[0]
    assert found.measured == "Change of the error in points: +15.0 at 0.9 and +16.0 at 0.99."


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
def test_each_verdict_can_fall(replaced: dict[int, Cell], place: int, verdict: str) -> None:
    cells = [replaced.get(number, one) for number, one in enumerate(CELLS)]
    assert verdicts(shift_record(cells))[place] == verdict


def test_one_of_few_images_may_be_lost() -> None:
    def lost(images: int, count: int) -> tuple[str, str]:
        last = replace(CELLS[8], measurements=streamed("class_ordered", "contrast", 5, 0.5, 0.5, 0.5).measurements)
        few = cell(dict(zip(METHODS, (0.5, 0.5, 0.5 - count / images), strict=True)), images, **last.factors)
        found = describe(shift_record([*CELLS[:8], few])).claims[3]
        return found.verdict, plain(found.measured)

    assert lost(20, 1)[0] == "met"
    assert lost(20, 2)[0] == lost(1000, 6)[0] == "not met"
    assert lost(20, 1)[1].endswith("more than 0.5 points, on few images one, are lost on 0 of 6 streams.")


@pytest.mark.parametrize(("share", "verdict"), [(None, "not met"), (0.2, "not met"), (1.0, "met")])
def test_with_two_classes_a_swap_costs_what_was_right(share: float | None, verdict: str) -> None:
    """Clean errors of 20 and 21 % become 80 and 79 %: no activation has moved."""
    swapped = decayed("swapped_labels", 0, 0.2, 0.21)
    rows = [] if share is None else [Measurement(quantity="swapped", value=share)]
    found = describe(shift_record([CELLS[0], replace(swapped, measurements=(*swapped.measurements, *rows))])).claims[0]
    assert found.verdict == verdict
    assert ("They differ in clean error" in found.measured) == (share == 1.0)


def test_a_report_of_images_of_one_channel_says_what_was_left_out() -> None:
    made = shift_record(CELLS, corruptions=["contrast", "fog", "saturate"])
    made.resolved.update(channels=1, image_size=[28, 28], classes=["cat", "dog"], validation_images=40)
    found = describe(made)
    method = " ".join(found.method)
    assert "Left out, since images of one channel have no color to change: saturate." in method
    assert "Their lengths are for 32 x 32 pixels" in method and "Swapped labels are those of cat and dog." in method
    assert "of 40 images, one image is 2.50" in plain(method)
    assert "2 corruptions, streams of 40 images in batches of" in found.lead


def test_clean_streams_do_not_decide_what_batch_statistics_win_under_corruption() -> None:
    cells = [replace(CELLS[3], measurements=streamed("iid", "clean", 0, 1.0, 0.0, 1.0).measurements), *CELLS[4:]]
    found = describe(shift_record(cells)).claims[1]
    assert (found.verdict, plain(found.measured)) == (
        "met",
        "Mean error: 45.0 % by the batch, 65.0 % by the stored ones.",
    )


def test_batch_statistics_that_err_as_much_as_stored_ones_do_not_err_more() -> None:
    assert verdicts(shift_record([streamed("class_ordered", "clean", 0, 0.8, 0.8, 0.8)]))[2] == "not met"


def test_streams_on_which_too_much_is_lost_are_counted() -> None:
    cells = [*CELLS[:8], streamed("class_ordered", "contrast", 5, 0.3, 0.15, 0.2)]
    assert plain(describe(shift_record(cells)).claims[3].measured) == (
        "At worst -10.00 points (class by class, contrast 5); more than 0.5 points are lost on 1 of 6 streams."
    )


def test_what_is_not_measured_is_not_judged() -> None:
    assert verdicts(shift_record([])) == ["not measured"] * 5
    assert verdicts(shift_record(CELLS[:3])) == ["met", *["not measured"] * 4]


def test_the_headline_says_what_the_gate_keeps_and_loses() -> None:
    said = plain(describe(shift_record(CELLS)).headline)
    assert said == "The gate keeps 95 % of batch statistics' gain and loses up to 0.2 points to stored ones"


def test_a_headline_fits_into_ninety_characters() -> None:
    made = shift_record([streamed("iid", "contrast", 5, 0.3, 0.6, 0.6), streamed("bursts", "fog", 5, 0.9, 0.9, 0.1)])
    said = plain(describe(made).headline)
    assert said == "The gate keeps 100 % of batch statistics' gain and loses up to 80.0 points to stored ones"
    assert len(said) <= 90


def test_a_gate_that_loses_nowhere_never_loses() -> None:
    cells = [one for number, one in enumerate(CELLS) if number != 3]
    assert "never loses to stored ones" in describe(shift_record(cells)).headline


def test_the_survivor_is_the_decay_that_errs_least_under_corruption() -> None:
    section = next(one for one in describe(shift_record(CELLS)).sections if one.short == "Decays")
    assert plain(section.shown[-1].text) == (
        "Under corruption the stored statistics of decay 0.9 err least, 70.0 % on average, and those of decay 0.99 "
        "most, 80.0 %: 10.0 points apart, where the corruption itself costs 50.0 points."
    )


def test_the_result_begins_with_the_figure_and_shows_each_kind_of_stream() -> None:
    section = describe(shift_record(CELLS)).sections[0]
    assert [block.kind for block in section.shown] == ["figures", "table", "text"]
    assert tables("Result", shift_record(CELLS)) == [
        [
            ["Stored", "50.0 %", "60.0 %", "45.0 %", "—", "—"],
            ["Batch", "37.0 %", "55.0 %", "82.5 %", "100 %", "-60.0 points|class by class, clean"],
            ["Gate", "37.4 %", "55.0 %", "45.0 %", "95 %", "-0.2 points|well mixed, clean"],
        ]
    ]
    assert [row[-1].tone for row in section.shown[1].rows] == ["", "bad", ""]


def test_kinds_of_streams_are_shown_in_one_order_whatever_was_measured_first() -> None:
    cells = [streamed(kind, "clean", 0, 0.8, 0.7, 0.8) for kind in ("one_by_one", "bursts", "class_ordered", "iid")]
    order = ["well mixed", "class by class", "bursts", "one by one"]
    assert figure("gains", shift_record(cells)).options["order"] == order


def test_decays_are_shown_by_severity() -> None:
    cells = [*CELLS[:3], decayed("fog", 5, 0.5, 0.4), decayed("fog", 1, 0.75, 0.7)]
    assert tables("Decays", shift_record(cells)) == [
        [
            ["Clean", "20.0 %", "21.0 %"],
            ["Labels 0 and 1 swapped", "35.0 %", "36.0 %"],
            ["Corruptions, severity 1", "25.0 %", "30.0 %"],
            ["Corruptions, severity 5", "60.0 %", "70.0 %"],
        ]
    ]
    rows = [(one["decay"], one["severity"], one["error"]) for one in figure("decays", shift_record(cells)).data]
    assert sorted(rows) == [
        ("decay 0.9", 0, pytest.approx(0.2)),
        ("decay 0.9", 1, pytest.approx(0.25)),
        ("decay 0.9", 5, pytest.approx(0.6)),
        ("decay 0.99", 0, pytest.approx(0.21)),
        ("decay 0.99", 1, pytest.approx(0.3)),
        ("decay 0.99", 5, pytest.approx(0.7)),
    ]


def test_every_stream_is_shown_and_what_is_won_or_lost_there_is_marked() -> None:
    mixed, *_ = tables("Every stream", shift_record(CELLS))
    assert mixed[1] == ["Contrast 5|1,000 images", "70.0 %", "40.0 %", "42.0 %"]
    section = describe(shift_record(CELLS)).sections[-1]
    rows = [row for block in section.shown if isinstance(block, Table) for row in block.rows]
    assert [[one.tone for one in row[1:]] for row in rows] == [
        ["", "bad", ""],
        ["", "strong", "strong"],
        ["", "strong", "strong"],
        ["", "strong", "strong"],
        ["", "bad", ""],
        ["", "bad", ""],
    ]


def test_the_figure_of_gains_has_a_value_for_each_stream_and_method_in_points() -> None:
    found = figure("gains", shift_record(CELLS))
    gains = [one["gain"] for one in found.data if (one["statistics"], one["stream"]) == ("batch", "well mixed")]
    assert gains == pytest.approx([-1, 30, 10])
    assert {one["statistics"] for one in found.data} == {"batch", "gate"}
    assert found.options["order"] == ["well mixed", "corruptions mixed", "class by class"]


def test_the_figure_of_corruptions_is_of_the_hardest_on_well_mixed_streams() -> None:
    found = figure("corruptions", shift_record([*TWO_SEEDS, *CELLS[6:], streamed("iid", "fog", 1, 0.7, 0.7, 0.7)]))
    rows = [(one["shift"], one["statistics"], one["low"], one["error"], one["high"]) for one in found.data]
    assert rows[1] == ("fog", "batch", pytest.approx(0.1), pytest.approx(0.3), pytest.approx(0.5))
    assert [row[:2] for row in rows] == [("fog", method) for method in METHODS]


@pytest.mark.parametrize(
    ("published", "said"),
    [((1, 1), "Corruptions: CIFAR-10-C's own"), ((0, 0), "Corruptions: made after"), ((1, 0), "Corruptions: in part")],
)
def test_the_method_says_whose_corruptions_they_are(published: tuple[float, ...], said: str) -> None:
    cells = [
        replace(one, measurements=(*one.measurements, Measurement(quantity="published", value=value)))
        for one, value in zip(CELLS[4:6], published, strict=True)
    ]
    assert any(said in line for line in describe(shift_record(cells)).method)


@pytest.mark.parametrize(
    "made",
    [
        shift_record([]),
        shift_record(CELLS),
        shift_record(CELLS[:1]),
        shift_record(CELLS[:3]),
        shift_record([replace(one, status="waiting", measurements=()) for one in CELLS]),
        shift_record([cell({"batch": 0.5}, part="stream", kind="iid", shift="fog", severity=5)], methods=["batch"]),
    ],
    ids=["empty", "whole", "one cell", "decays alone", "waiting", "without stored ones"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_report_is_finished_once_every_cell_is_measured() -> None:
    waiting = [*CELLS[:-1], replace(CELLS[-1], status="waiting", measurements=())]
    assert describe(shift_record(CELLS)).finished
    assert not describe(shift_record(waiting)).finished


def test_a_network_that_may_be_guessing_decides_nothing() -> None:
    made = shift_record(CELLS)
    report = describe(replace(made, cells=(compare_run("several_decays", val_accuracy=[0.1, 0.105]), *made.cells[1:])))
    assert {item.verdict for item in report.claims} == {"not measured: at chance"}
    assert report.headline.startswith("The network is not surely better than guessing (10.5")


def rebuilt(name: str) -> Record:
    """The record behind a summary. Which seed had which error is made up; means and gains are as they were."""
    content = content_of(name)
    return record_of(content, [*decay_cells(content), *stream_cells(content)])


def decay_cells(content: dict[str, Any]) -> Iterator[Cell]:
    errors: dict[tuple[str, int], dict[str, list[float]]] = {}
    for one in content["decays"]:
        errors.setdefault((one["shift"], one["severity"]), {})[one["decay"]] = few_values(one["error"])
    for place, seed in enumerate(content["config"]["seeds"]):
        for (shift, severity), by_decay in errors.items():
            values = {decay: 1 - each[place] for decay, each in by_decay.items()}
            yield cell(values, part="decays", shift=shift, severity=severity, seed=seed)


def stream_cells(content: dict[str, Any]) -> Iterator[Cell]:
    """Cells in whole images, of which everything that the summary rounds is a number."""
    for place, seed in enumerate(content["config"]["seeds"]):
        for one in content["streams"]:
            images, n = one["images"], one["n"]
            wrong = round(one["error"]["stored"] * images * n)
            stored = wrong // n + (wrong % n if place == 0 else 0)
            values = {}
            for method, (mean, low, high) in one["gain"].items():
                gain = few_values({"mean": mean, "low": low, "high": high, "n": n})[place]
                values[method] = 1 - (stored - round(gain * images)) / images
            kind = "iid" if one["kind"] == "mixed" else one["kind"]
            factors = {"kind": kind, "shift": one["shift"], "severity": one["severity"], "seed": seed}
            yield cell(values, images, part="stream", **factors)


@pytest.mark.parametrize("name", ["shift_cpu_20261123", "shift_fresh_networks_cpu_20261123"])
def test_a_report_equals_the_record_in_docs(name: str) -> None:
    found, content = summary_json(rebuilt(name)), content_of(name)
    if len(content["config"]["seeds"]) > 1:  # the errors of single seeds are not in it
        for one in (*found["worst"].values(), *content["worst"].values()):
            one["error"] = one["error"]["mean"]
    check_equals(found, content)
