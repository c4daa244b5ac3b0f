"""What the report of a scaling experiment says, from made-up numbers."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from steadynorm.lab.experiments import scale
from steadynorm.lab.experiments.scale import describe, grid_points, last_epochs
from steadynorm.reporting.records import Cell, Record
from tests.support.documented import check_equals, content_of, record_of
from tests.support.records import check_page, summary_json, with_factors
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run

VARIANTS = ["recipe", "no_scaling", "no_warm_up", "frozen_end"]


def trained(variant: str, batch_size: int, accuracy: float | None, *, seed: int = 0) -> Cell:
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
    return with_factors(made, batch_size=batch_size, variant=variant)


def scale_record(*runs: Cell, **changes: object) -> Record:
    own = {"batch_size": [1024, 128], "variants": VARIANTS, "epochs": 8, "warm_up": 2, "freeze_last": 2}
    more = {"reference_batch": 128, "at_once": 512, "network": "resnet20"}
    return replace(compare_record(runs, **(own | more | changes)), experiment="scale")


LARGE = {"recipe": 0.80, "no_scaling": 0.60, "no_warm_up": None, "frozen_end": 0.79}
GRID = [trained(variant, 128, 0.805) for variant in VARIANTS]
GRID += [trained(variant, 1024, accuracy) for variant, accuracy in LARGE.items()]


CLAIMS = ["recipe 1", "linear scaling", "warm-up", "zero-init", "weight decay", "whole batch", "any", "Freezing"]


def judged(made: Record) -> dict[str, str]:
    """Verdicts by words that tell the claims apart."""
    found = describe(made).claims
    return {words: next(item.verdict for item in found if words in item.claim) for words in CLAIMS}


def headline(made: Record) -> str:
    return describe(made).headline.replace("\N{NO-BREAK SPACE}", " ")


def test_the_report_equals_the_record_in_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of("scale_cpu_20261123")
    # At the time of that record a verdict could rest on networks that were no better than guessing.
    monkeypatch.setattr(scale, "chance_of", lambda _: SimpleNamespace(is_beaten=lambda _: True, images=10_000))
    made = record_of(content)
    check_equals(summary_json(made), content)
    assert headline(made) == "The recipe reaches 14.0 % at batch 8,192, 77.3 % at 128; with no step of it 41.0 %"


def test_the_report_of_residual_networks_equals_the_record_in_docs() -> None:
    content = content_of("scale_resnet20_cpu_20261123")
    check_equals(summary_json(record_of(content)), content)


def test_accuracy_is_the_median_of_the_last_epochs() -> None:
    made = scale_record(*GRID)
    assert (last_epochs(made), last_epochs(scale_record(epochs=90)), last_epochs(scale_record(epochs=2))) == (2, 5, 1)
    large = grid_points(made)["recipe", 1024]
    assert (large.at, large.cells[0].factors["lr"]) == ({"variant": "recipe", "batch_size": 1024}, 0.8)
    assert large["accuracy"].mean == pytest.approx(0.80)
    assert large["images_per_second"].mean == pytest.approx(104.5)


def test_one_wild_epoch_among_the_last_does_not_decide() -> None:
    values = [0.1] * 15 + [0.10, 0.79, 0.80, 0.81, 0.82]
    run = compare_run("ghost_batch_norm", val_accuracy=values)
    made = scale_record(with_factors(run, batch_size=128, variant="recipe"), epochs=20)
    assert grid_points(made)["recipe", 128]["accuracy"].mean == 0.80


def test_batches_are_shown_from_the_smallest_to_the_largest() -> None:
    table = describe(scale_record(*GRID)).table
    assert table.columns == ("Variant", "Batch 128", "Batch 1,024")
    assert [row[0].text for row in table.rows] == [
        "The whole recipe",
        "Without linear scaling",
        "Without warm-up",
        "Statistics frozen at the end",
    ]
    assert table.rows[2][2].text == "exploded at step 17" and table.rows[2][2].tone == "bad"


def test_the_headline_says_what_the_recipe_reaches_and_which_step_matters() -> None:
    assert headline(scale_record(*GRID)) == (
        "The recipe reaches 80.0 % at batch 1,024, 80.5 % at 128; without linear scaling 60.0 %"
    )


def test_the_headline_calls_no_step_at_all_no_step() -> None:
    large = [trained("recipe", 1024, 0.80), trained("plain", 1024, 0.30), trained("no_scaling", 1024, 0.60)]
    made = scale_record(*GRID[:4], *large, variants=["recipe", "plain", "no_scaling"])
    assert headline(made).endswith("; without linear scaling 60.0 %")
    without = scale_record(*GRID[:4], *large[:2], variants=["recipe", "plain"])
    assert headline(without) == "The recipe reaches 80.0 % at batch 1,024, 80.5 % at 128"


def test_the_headline_says_where_the_whole_recipe_is_not_the_best() -> None:
    large = [trained("recipe", 1024, 0.15), trained("no_scaling", 1024, 0.40), trained("no_warm_up", 1024, 0.10)]
    assert headline(scale_record(*GRID[:4], *large)).endswith(", 80.5 % at 128; without linear scaling 40.0 %")


def test_the_headline_leaves_the_smallest_batch_out_where_a_name_is_long() -> None:
    large = [trained("recipe", 1024, 0.80), trained("whole_statistics", 1024, 0.60)]
    made = scale_record(trained("recipe", 128, 0.805), *large, variants=["recipe", "whole_statistics"])
    assert headline(made) == "The recipe reaches 80.0 % at batch 1,024; statistics of the whole batch 60.0 %"


def test_of_several_steps_the_headline_names_the_one_that_costs_most() -> None:
    large = [trained("recipe", 1024, 0.80), trained("no_scaling", 1024, 0.60), trained("no_warm_up", 1024, 0.50)]
    assert headline(scale_record(*GRID[:4], *large)).endswith("; without warm-up 50.0 %")


def test_the_headline_of_one_batch_size_names_it_once() -> None:
    assert headline(scale_record(*GRID[:1], batch_size=[128])) == "The recipe reaches 80.5 % at batch 128"


def test_the_headline_names_the_seed_that_may_be_guessing() -> None:
    seeds = [trained("recipe", 1024, accuracy, seed=seed) for seed, accuracy in enumerate((0.105, 0.5))]
    assert headline(scale_record(*seeds)).endswith("not surely better than guessing: 10.5 %")


@pytest.mark.parametrize(
    ("large", "why"),
    [
        ([], "not trained"),
        ([replace(with_factors(GRID[0], batch_size=1024), status="waiting", measurements=())], "not ended"),
        ([trained("recipe", 1024, None)], "loss no longer finite at batch 1,024"),
    ],
    ids=["absent", "waiting", "exploded"],
)
def test_the_headline_says_why_the_recipe_has_no_accuracy(large: list[Cell], why: str) -> None:
    assert headline(scale_record(*GRID[:4], *large)) == f"The recipe has no accuracy at the largest batch: {why}"


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
    after = [trained("recipe", 128, 0.85), *GRID[1:]]
    assert judged(scale_record(*after))["recipe 1"] == "not met"


def test_what_the_sizes_cannot_be_compared_for_is_said() -> None:
    single, exploded = scale_record(*GRID[:1], batch_size=[128]), scale_record(trained("recipe", 128, None), *GRID[1:])
    assert describe(single).claims[0].measured == "There is one batch size."
    assert describe(exploded).claims[0].measured == "The whole recipe: loss no longer finite at batch 128."


def test_seeds_that_overlap_decide_nothing() -> None:
    pairs = {"recipe": (0.80, 0.70), "no_scaling": (0.75, 0.65), "frozen_end": (0.75, 0.65)}
    runs = [trained(name, 1024, value, seed=seed) for name, each in pairs.items() for seed, value in enumerate(each)]
    made = scale_record(*runs, seeds=[0, 1])
    assert (judged(made)["linear scaling"], judged(made)["Freezing"]) == ("not met", "met")
    (text,) = [item.measured for item in describe(made).claims if "linear scaling" in item.claim]
    assert text.endswith("less; the seeds' ranges overlap.")
    assert headline(made) == "The recipe reaches 75.0 % at batch 1,024"


def test_what_has_not_ended_leaves_it_open() -> None:
    waiting = replace(GRID[-2], status="waiting", measurements=())
    made = scale_record(*GRID[:-2], waiting, GRID[-1])
    assert judged(made)["warm-up"] == "not measured" and not describe(made).finished
    one_of_two = scale_record(*GRID, with_factors(waiting, seed=1), seeds=[0, 1])
    assert judged(one_of_two)["warm-up"] == "not measured"


def test_a_step_without_which_every_run_explodes_is_needed_and_its_claim_says_so() -> None:
    (found,) = [item for item in describe(scale_record(*GRID)).claims if "warm-up" in item.claim]
    assert (found.verdict, found.measured) == ("met", "Its loss was no longer finite.")


def test_a_verdict_comes_with_its_numbers() -> None:
    first, second, *_ = (
        item.measured.replace("\N{NO-BREAK SPACE}", " ") for item in describe(scale_record(*GRID)).claims
    )
    assert first == "80.0 % against 80.5 %: 0.5 points behind."
    assert second == "Without linear scaling: 60.0 % against 80.0 % with the whole recipe, 20.0 points less."


def measured(variant: str, *accuracies: float | None) -> str:
    """The verdict on a variant beside a recipe of 80 %, both of so many seeds."""
    seeds = [trained(variant, 1024, accuracy, seed=seed) for seed, accuracy in enumerate(accuracies)]
    whole = [trained("recipe", 1024, 0.80, seed=seed) for seed in range(len(accuracies))]
    words = {"no_scaling": "linear scaling", "frozen_end": "Freezing"}[variant]
    (found,) = [item for item in describe(scale_record(*whole, *seeds)).claims if words in item.claim]
    return f"{found.verdict}. {found.measured}".replace("\N{NO-BREAK SPACE}", " ")


def test_a_variant_that_is_better_is_said_to_be() -> None:
    assert measured("no_scaling", 0.85).endswith("85.0 % against 80.0 % with the whole recipe, 5.0 points more.")
    first = describe(scale_record(trained("recipe", 128, 0.7), *GRID[1:])).claims[0]
    assert first.measured.endswith("points ahead.")


def test_ranges_of_single_seeds_do_not_overlap() -> None:
    assert measured("no_scaling", 0.80).endswith("0.0 points more.")
    assert measured("no_scaling", 0.80, 0.80).endswith("0.0 points more; the seeds' ranges overlap.")


def test_frozen_statistics_that_explode_are_not_measured() -> None:
    assert measured("frozen_end", None) == (
        "not measured. Statistics frozen at the end: loss no longer finite at batch 1,024."
    )


def test_what_was_not_trained_is_named() -> None:
    missing = describe(scale_record(trained("recipe", 1024, 0.8))).claims
    assert missing[1].measured == "Without linear scaling: not trained."
    assert (
        describe(scale_record(trained("no_scaling", 1024, 0.8))).claims[1].measured == "The whole recipe: not trained."
    )


def test_accuracy_is_drawn_over_the_batch_size_with_a_row_for_each_network_that_finished() -> None:
    running = replace(with_factors(GRID[0], seed=1), status="running")
    report = describe(scale_record(*GRID, running, seeds=[0, 1]))
    (figure,) = report.figures
    found = [(row["variant"], row["images in a step"], row["accuracy"]) for row in figure.data]
    assert ("Without linear scaling", 1024, pytest.approx(0.6)) in found
    assert len(found) == 7 and not any(row[:2] == ("Without warm-up", 1024) for row in found)
    assert [block.kind for block in report.sections[0].shown] == ["figures", "table", "text"]


def test_speed_is_shown_for_each_variant_and_batch_size() -> None:
    _, _, speed = describe(scale_record(*GRID)).sections
    rows = [[cell.text for cell in row] for row in speed.shown[0].rows]
    assert rows[0] == ["The whole recipe", "104 /s", "104 /s"] and rows[2] == ["Without warm-up", "104 /s", "—"]


def test_a_cell_names_rate_and_spread() -> None:
    seeds = [trained("recipe", 1024, accuracy, seed=seed) for seed, accuracy in enumerate((0.8, 0.7))]
    waiting = replace(with_factors(seeds[0], seed=2), status="waiting", measurements=())
    made = scale_record(*seeds, waiting, variants=["recipe", "plain"], batch_size=[1024], seeds=[0, 1, 2])
    row, absent = describe(made).table.rows
    assert absent[1].text == "waiting"
    texts = [text.replace("\N{NO-BREAK SPACE}", " ") for text in (row[1].text, row[1].note)]
    assert texts == ["75.0 ± 7.1 %, waiting", "rate 0.8; 70.0 to 80.0 %, n = 2"]


@pytest.mark.parametrize(
    "made",
    [
        scale_record(),
        scale_record(*GRID),
        scale_record(*(replace(one, status="waiting", measurements=()) for one in GRID)),
        scale_record(*GRID[:1], batch_size=[128], variants=["recipe"]),
        scale_record(trained("recipe", 128, None), batch_size=[128], variants=["recipe"]),
        scale_record(trained("recipe", 128, math.nan), batch_size=[128], variants=["recipe"]),
    ],
    ids=["empty", "whole", "waiting", "one", "only explosions", "no number"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_recipe_that_may_be_guessing_at_the_largest_batch_holds_nothing_up() -> None:
    stuck = [run for run in GRID if (run.factors["variant"], run.factors["batch_size"]) != ("recipe", 1024)]
    made = scale_record(*stuck, trained("recipe", 1024, 0.105))
    verdicts = judged(made)
    assert (verdicts["recipe 1"], verdicts["linear scaling"], verdicts["Freezing"]) == (
        "not met",
        "not measured: at chance",
        "not measured: at chance",
    )
    assert headline(made) == "At batch 1,024 the whole recipe is not surely better than guessing: 10.5 %"
