import math
from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.records import Record, RunRecord
from steadynorm.lab.report.scale.document import make_report
from steadynorm.lab.report.scale.expectations import expectations
from steadynorm.lab.report.scale.summary import is_finished, last_epochs, places
from tests.support.records import check_page
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run

VARIANTS = ["recipe", "no_scaling", "no_warm_up", "frozen_end"]


def trained(variant: str, batch_size: int, accuracy: float | None, *, seed: int = 0) -> RunRecord:
    """A run whose last two of eight epochs are around an accuracy, or that exploded at step 17."""
    values = [] if accuracy is None else [0.1] * 6 + [accuracy - 0.01, accuracy + 0.01]
    made = compare_run(
        "ghost_batch_norm",
        val_accuracy=values,
        status="diverged" if accuracy is None else "finished",
        diverged_at_step=17 if accuracy is None else None,
        lr=0.1 * batch_size / 128,
        seed=seed,
        planned=8,
        change=lambda epoch: {"images_per_second": 100.0 + epoch},
    )
    return replace(made, spec=replace(made.spec, batch_size=batch_size, variant=variant))


def scale_record(*runs: RunRecord, **changes: object) -> Record:
    own = {"batch_size": [1024, 128], "variants": VARIANTS, "epochs": 8, "warm_up": 2, "freeze_last": 2}
    more = {"reference_batch": 128, "at_once": 512, "network": "resnet20"}
    return replace(compare_record(runs, **(own | more | changes)), experiment="scale")


LARGE = {"recipe": 0.80, "no_scaling": 0.60, "no_warm_up": None, "frozen_end": 0.79}
GRID = [trained(variant, 128, 0.805) for variant in VARIANTS]
GRID += [trained(variant, 1024, accuracy) for variant, accuracy in LARGE.items()]


CLAIMS = ["recipe 1", "linear scaling", "warm-up", "zero-init", "weight decay", "whole batch", "any", "Freezing"]


def judged(made: Record) -> dict[str, str]:
    """Verdicts by words that tell the claims apart."""
    found = expectations(made, places(made))
    return {words: next(item.verdict for item in found if words in item.claim) for words in CLAIMS}


def test_accuracy_is_the_median_of_the_last_epochs() -> None:
    made = scale_record(*GRID)
    assert (last_epochs(made), last_epochs(scale_record(epochs=90)), last_epochs(scale_record(epochs=2))) == (2, 5, 1)
    large = places(made)[1]
    assert (large.variant, large.batch_size, large.lr) == ("recipe", 1024, 0.8)
    assert large.accuracy is not None and large.accuracy.mean == pytest.approx(0.80)
    assert large.images_per_second is not None and large.images_per_second.mean == pytest.approx(104.5)


def test_batches_are_shown_from_the_smallest_to_the_largest() -> None:
    table = make_report(scale_record(*GRID)).table
    assert table.columns == ("Variant", "Batch 128", "Batch 1,024")
    assert [row[0].text for row in table.rows] == [
        "The whole recipe",
        "Without linear scaling",
        "Without warm-up",
        "Statistics frozen at the end",
    ]
    assert table.rows[2][2].text == "exploded at step 17" and table.rows[2][2].tone == "bad"


def test_the_headline_says_what_is_lost_and_which_step_matters() -> None:
    assert make_report(scale_record(*GRID)).headline.replace("\N{NO-BREAK SPACE}", " ") == (
        "The whole recipe reaches 80.0 % at batch 1,024, 0.5 points below batch 128; the step that matters most there: "
        "without linear scaling it loses 20.0 points"
    )


def test_the_headline_calls_no_step_at_all_no_step() -> None:
    large = [trained("recipe", 1024, 0.80), trained("plain", 1024, 0.30), trained("no_scaling", 1024, 0.60)]
    made = scale_record(*GRID[:4], *large, variants=["recipe", "plain", "no_scaling"])
    assert "the step that matters most there: without linear scaling" in make_report(made).headline
    without = scale_record(*GRID[:4], *large[:2], variants=["recipe", "plain"])
    assert "the step that matters most" not in make_report(without).headline


def test_the_headline_says_where_the_whole_recipe_is_not_the_best() -> None:
    large = [trained("recipe", 1024, 0.15), trained("no_scaling", 1024, 0.40), trained("no_warm_up", 1024, 0.10)]
    headline = make_report(scale_record(*GRID[:4], *large)).headline.replace("\N{NO-BREAK SPACE}", " ")
    assert headline.endswith("below batch 128; without linear scaling it reaches 25.0 points more there")


def test_what_was_expected_is_judged_at_the_largest_batch() -> None:
    assert judged(scale_record(*GRID)) == {
        "recipe 1": "met",
        "linear scaling": "met",
        "warm-up": "met",
        "zero-init": "not measured",
        "weight decay": "not measured",
        "whole batch": "not measured",
        "any": "not measured",
        "Freezing": "not met",
    }


def test_a_large_batch_that_falls_behind_is_not_met() -> None:
    behind = [trained("recipe", 128, 0.85), *GRID[1:]]
    assert judged(scale_record(*behind))["recipe 1"] == "not met"


def test_what_the_sizes_cannot_be_compared_for_is_said() -> None:
    def measured(made: Record) -> str:
        return expectations(made, places(made))[0].measured

    assert measured(scale_record(*GRID[:1], batch_size=[128])) == "There is one batch size."
    exploded = scale_record(trained("recipe", 128, None), *GRID[1:])
    assert measured(exploded) == "The loss of recipe was no longer finite at batch 128."


def test_seeds_that_overlap_decide_nothing() -> None:
    pairs = {"recipe": (0.80, 0.70), "no_scaling": (0.75, 0.65), "frozen_end": (0.75, 0.65)}
    runs = [trained(name, 1024, value, seed=seed) for name, each in pairs.items() for seed, value in enumerate(each)]
    made = scale_record(*runs, seeds=[0, 1])
    assert (judged(made)["linear scaling"], judged(made)["Freezing"]) == ("not met", "met")
    (text,) = [item.measured for item in expectations(made, places(made)) if "linear scaling" in item.claim]
    assert text.endswith("less; the seeds' ranges overlap.")
    assert make_report(made).headline.replace("\N{NO-BREAK SPACE}", " ") == (
        "The whole recipe reaches 75.0 % at batch 1,024"
    )


def test_what_has_not_ended_leaves_it_open() -> None:
    waiting = replace(GRID[-2], status="waiting", epochs=(), diverged_at_step=None)
    made = scale_record(*GRID[:-2], waiting, GRID[-1])
    assert judged(made)["warm-up"] == "not measured" and not is_finished(made)
    one_of_two = scale_record(*GRID, replace(waiting, spec=replace(waiting.spec, seed=1)), seeds=[0, 1])
    assert judged(one_of_two)["warm-up"] == "not measured"


@pytest.mark.parametrize(
    "made",
    [
        scale_record(),
        scale_record(*GRID),
        scale_record(*(replace(one, status="waiting", epochs=()) for one in GRID)),
        scale_record(*GRID[:1], batch_size=[128], variants=["recipe"]),
        scale_record(trained("recipe", 128, None), batch_size=[128], variants=["recipe"]),
        scale_record(trained("recipe", 128, math.nan), batch_size=[128], variants=["recipe"]),
    ],
    ids=["empty", "whole", "waiting", "one", "only explosions", "no number"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_recipe_that_may_be_guessing_at_the_largest_batch_holds_nothing_up() -> None:
    stuck = [run for run in GRID if (run.spec.variant, run.spec.batch_size) != ("recipe", 1024)]
    made = scale_record(*stuck, trained("recipe", 1024, 0.105))
    verdicts = judged(made)
    assert (verdicts["recipe 1"], verdicts["linear scaling"], verdicts["Freezing"]) == (
        "not met",
        "not measured: at chance",
        "not measured: at chance",
    )
    headline = make_report(made).headline.replace("\N{NO-BREAK SPACE}", " ")
    assert headline == "At batch 1,024 the whole recipe is no better than guessing: 10.5 %"
