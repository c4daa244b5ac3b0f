"""Train with larger and larger batches, with the large-batch recipe and without each of its steps.

Question: how large may a batch be before accuracy falls, and which steps of the large-batch recipe hold it up (Goyal et
al. 2017, arXiv 1706.02677)?

Expected (the paper, ImageNet): with the whole recipe accuracy stays within a point up to 8,192 images; without linear
scaling or without warm-up it does not; zero-initialised last gammas and norms without weight decay help a little;
statistics of 32 images, never of the whole batch. Freezing the statistics in the last epochs is not of that paper but
of Wu & Johnson 2021 (arXiv 2105.07576). On CIFAR-10 a large batch leaves few steps: 5 an epoch at 8,192.

Cost: every network sees the same number of images, so all cost about the same: on two cores with bfloat16 about a
minute for an epoch of CIFAR-10, times epochs, variants, batch sizes and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steadynorm.lab.configuration import Network, TrainingConfig, check_experiment, check_split, settings_of
from steadynorm.lab.describe.arms import Arm, arms_at, if_finished, points_of
from steadynorm.lab.describe.claims import expected, tolerated
from steadynorm.lab.describe.figures import chart
from steadynorm.lab.describe.method import method_of, sentences
from steadynorm.lab.describe.networks import has_ended, networks_as_json
from steadynorm.lab.describe.tables import SERIES, seeds_note
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.networks import RESIDUAL
from steadynorm.lab.recipe import RECIPES, find_recipe
from steadynorm.lab.settings import Settings
from steadynorm.lab.training import network, train_networks
from steadynorm.lab.workers import number_of_workers
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import is_guessing, judge, too_few, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import flag
from steadynorm.reporting.numbers import NONE, number, percent, percent_spread, points, rate, spread_note
from steadynorm.reporting.records import Cell, Factors, Record
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, are_apart, median
from steadynorm.reporting.words import capital, counted, first_fitting

__all__ = ["EXPERIMENT", "ScaleConfig", "grid_points", "last_epochs"]

STATISTICS = 32  # images that the recipe normalizes together, as in the arm ghost_batch_norm
SMALL, WHOLE = "ghost_batch_norm", "sync_batch_norm"
STEPS = {"reference_batch": "linear_scaling", "warm_up": "warm_up", "freeze_last": "frozen_end"}
"""Field of the configuration -> its step of the recipe."""

RECIPE, FROZEN, PLAIN = "recipe", "frozen_end", "plain"
EXPECTED = {
    "no_scaling": "Without linear scaling the largest batch does worse.",
    "no_warm_up": "Without warm-up the largest batch does worse.",
    "no_zero_gamma": "Without zero-initialised γ the largest batch does worse.",
    "decayed_norms": "With weight decay on normalizations and biases the largest batch does worse.",
    "whole_statistics": "With statistics of the whole batch the largest batch does worse.",
    PLAIN: "Without any of the steps the largest batch does worse.",
    FROZEN: "Freezing the statistics in the last epochs does no harm at the largest batch.",
}
"""Variant -> expectation."""
HELD = 0.01
"""How far the largest batch may be behind the smallest: a point, more than the paper's 0.14 of ImageNet."""
LAST = 5
"""Epochs at the end whose median is a network's accuracy, as in the paper; of short trainings the last quarter."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(TrainingConfig):
    """Train at several batch sizes, with the large-batch recipe and without each of its steps, and write a report.

    Every batch size trains for the same number of epochs. Under torchrun the workers share each batch.
    """

    network: Network = "resnet20"
    """As for steadynorm compare; the residual blocks of resnet20, resnet18 and mobilenet start as the identity."""
    batch_size: tuple[int, ...] | None = None  # until the data are known
    """Images in a step, on all workers together; default: 128 512 2048 8192, on the embedded data 128 512 1024."""
    variants: tuple[str, ...] = tuple(RECIPES)
    """The recipe, and the recipe without one of its steps: recipe, no_scaling, no_warm_up, no_zero_gamma,
    decayed_norms, whole_statistics, frozen_end, plain."""
    lr: float = 0.1
    """Learning rate at --reference-batch; with linear scaling it grows in proportion to the batch."""
    reference_batch: int = 128
    """Batch size at which the recipe's learning rate is --lr."""
    warm_up: int = 3
    """Epochs in which the learning rate rises from --lr to the scaled one."""
    freeze_last: int = 4
    """Epochs at the end in which frozen_end keeps the statistics."""
    at_once: int = 2048
    """Images in memory at once, on all workers; a larger batch is split into parts of this size, each normalized by
    itself, and their gradients are averaged."""
    depth: int = 6
    """Convolutions of the cnn."""
    augment: Literal["none", "crop-flip"] = "crop-flip"

    def by_data(self) -> Mapping[str, Any]:
        """Return the batch sizes for which there are images."""
        return {"batch_size": (128, 512, 1024) if self.data == "shapes" else (128, 512, 2048, 8192)}


QUICK: dict[str, Any] = {"network": "cnn", "widths": (8, 16, 32), "batch_size": (64, 512), "reference_batch": 64}
QUICK |= {"variants": ("recipe", "no_scaling", "no_warm_up", "plain")}
QUICK |= {"epochs": 6, "milestones": (4,), "warm_up": 2, "augment": "none"}


def _work(task: Task[ScaleConfig]) -> None:
    config = task.config
    grid = points_of(seed=config.seeds, batch_size=_steps(config), variant=config.variants)

    def settings(cell: Cell) -> Settings:
        recipe = find_recipe(cell.factors["variant"])
        return settings_of(
            config,
            task.record,
            at_once=config.at_once,
            warm_up=config.warm_up if recipe.warm_up else 0,
            warm_up_from=config.lr,
            spare_norms=recipe.spared_norms,
            zero_last_gamma=recipe.zero_gamma and config.network in RESIDUAL,
            freeze_last=config.freeze_last if recipe.frozen_end else 0,
        )

    train_networks(task, [network_of(config, **point) for point in grid], settings)


def network_of(config: ScaleConfig, variant: str, batch_size: int, seed: int) -> Factors:
    """Return the settings of a network."""
    recipe = find_recipe(variant)
    return network(
        arm=SMALL if recipe.small_statistics else WHOLE,
        seed=seed,
        lr=config.lr * (batch_size / config.reference_batch if recipe.linear_scaling else 1),
        epochs=config.epochs,
        batch_size=batch_size,
        variant=variant,
    )


def _check(config: ScaleConfig) -> None:
    for variant in config.variants:
        find_recipe(variant)
    least = {"batch_size": 2, "reference_batch": 1, "warm_up": 0, "freeze_last": 0, "at_once": 2}
    check_experiment(config, ("variants", "batch_size"), least=least)
    if config.optimizer != "sgd":
        raise UserError(f"--optimizer: the recipe's linear scaling is for SGD, got {config.optimizer}. Drop it.")
    if config.schedule == "one-cycle":
        raise UserError(
            "--schedule: one-cycle has its own warm-up, which every variant would have. Use step or cosine."
        )
    _check_steps(config)
    _check_batches(config)
    for name in ("warm_up", "freeze_last"):
        if _is_taken(config, name) and getattr(config, name) >= config.epochs:
            raise UserError(f"{flag(name)}: must be less than the {config.epochs} epochs, got {getattr(config, name)}.")
    if config.network not in RESIDUAL and "no_zero_gamma" in config.variants:
        raise UserError(
            f"--variants: no_zero_gamma needs residual blocks, --network {config.network} has none of ours. "
            "Drop it, or use resnet20."
        )


def _check_steps(config: ScaleConfig) -> None:
    """Refuse a flag whose step no variant takes."""
    for name in STEPS:
        if flag(name) in config.given and not _is_taken(config, name):
            raise UserError(
                f"{flag(name)}: belongs to a step that none of --variants takes. Drop it, or add a variant."
            )


def _is_taken(config: ScaleConfig, name: str) -> bool:
    """Whether a variant takes the step of a field."""
    return any(getattr(find_recipe(variant), STEPS[name]) for variant in config.variants)


def _steps(config: ScaleConfig) -> tuple[int, ...]:
    assert config.batch_size is not None  # once the data is known
    return config.batch_size


def _check_batches(config: ScaleConfig) -> None:
    """Refuse batches that cannot be cut into equal parts that fit into memory, for every worker."""
    check_split(*_steps(config))
    for batch_size in _steps(config):
        if batch_size > config.at_once and (batch_size % config.at_once or config.at_once % number_of_workers()):
            raise UserError(
                f"--at-once: {batch_size} images cannot be cut into equal parts of {config.at_once} for "
                f"{number_of_workers()} workers. Choose one that divides every larger --batch-size."
            )


def describe(record: Record) -> Report:
    """Describe the results of a scaling experiment."""
    grid, words = grid_points(record), _words(record)
    table = _table(record, grid, _accuracy)
    is_begun = any(arm["accuracy"] for arm in grid.values())
    figures = _figure(record, grid) if is_begun else []
    return Report(
        headline=_headline(record, grid),
        lead=sentences(record, LEAD, **words),
        table=table,
        sections=(
            Section(title="Result", blocks=(Figures(figures), table, Text(sentences(record, NOTE, **words)))),
            expected(Claims(list(_claims(record, grid)))),
            Section(title="Speed", blocks=(_table(record, grid, _speed),) if is_begun else ()),
        ),
        method=method_of(record, METHOD, **words),
        finished=has_ended(record),
        findings={
            "last_epochs": last_epochs(record),
            "places": [arm.as_json() | {"lr": _rate(arm)} for arm in grid.values()],
            "runs": networks_as_json(record),
        },
    )


Grid = Mapping[tuple[str, int], Arm]
"""Variants by their names and batch sizes."""


def grid_points(record: Record) -> dict[tuple[str, int], Arm]:
    """Reduce the networks of every variant, in the order of the configuration, at every batch size, smallest first.

    Accuracy is the median of the last epochs, speed the median of all.
    """

    def accuracy(run: Cell) -> float:
        run.last("val_accuracy")  # present if the network has finished
        return median([*run.series("val_accuracy").values()][-last_epochs(record) :])

    def speed(run: Cell) -> float:
        return median(run.series("images_per_second").values())

    quantities = {"accuracy": if_finished(accuracy), "images_per_second": if_finished(speed)}
    variants = [str(variant) for variant in record.config["variants"]]
    arms = arms_at(record, quantities, by="variant", variant=variants, batch_size=_sizes(record))
    return {(arm.arm, arm.at["batch_size"]): arm for arm in arms}


def last_epochs(record: Record) -> int:
    """Return the number of last epochs whose median is a network's accuracy."""
    return max(1, min(LAST, int(record.config["epochs"]) // 4))


def _sizes(record: Record) -> list[int]:
    return sorted(int(size) for size in record.config["batch_size"])


def _rate(arm: Arm) -> float:
    """Return the highest rate of the training."""
    return arm.cells[0].factors["lr"] if arm.cells else 0.0


def _table(record: Record, grid: Grid, cell: Callable[[Arm], Entry]) -> Table:
    """Lay out a row for each variant and a column for each batch size."""

    def column(size: int) -> Callable[[str], Entry]:
        return lambda variant: cell(grid[variant, size])

    def name(variant: str) -> Entry:
        return Entry(text=_name(variant), tone=f"series-{variants.index(variant) % SERIES}")

    variants = [str(variant) for variant in record.config["variants"]]
    return Table.of(variants, {"Variant": name, **{f"Batch {size:,}": column(size) for size in _sizes(record)}})


def _name(variant: str) -> str:
    return capital(find_recipe(variant).summary)


def _accuracy(arm: Arm) -> Entry:
    accuracy, waiting = arm["accuracy"], "waiting" if arm.waiting or not arm.seeds else ""
    words = [percent_spread(accuracy) if accuracy else "", arm.exploded, waiting]
    note = f"rate {rate(_rate(arm))}{'; ' if accuracy else ''}{spread_note(accuracy)}"
    return Entry(text=", ".join(filter(None, words)), note=note, tone="bad" if arm.lost else "")


def _speed(arm: Arm) -> Entry:
    return Entry(text=f"{number(arm.mean('images_per_second'))} /s" if arm["images_per_second"] else NONE)


def _figure(record: Record, grid: Grid) -> list[Figure]:
    """Draw accuracy over the batch size, a line for each variant."""
    rows = [
        {"variant": _name(variant), "images in a step": size, "accuracy": accuracy}
        for (variant, size), arm in grid.items()
        for cell, accuracy in zip(arm.cells, arm.values["accuracy"], strict=True)
        if cell.status == "finished"
    ]
    axes: dict[str, Any] = {"x": "images in a step", "x_log": True, "y": "accuracy", "percent": True, "dots": True}
    return chart(
        "lines",
        rows,
        name="accuracy",
        title="Validation accuracy over the batch size",
        caption="Median of the last epochs. Line: mean of the seeds. Band: lowest to highest.",
        **axes,
        x_values=sorted({row["images in a step"] for row in rows}),
        hue="variant",
        order=[_name(variant) for variant in record.config["variants"]],
    )


def _claims(record: Record, grid: Grid) -> Iterator[Claim]:
    """Judge the whole recipe, then each of its steps: met if the seeds' ranges do not overlap.

    If the whole recipe is at chance, no step can be judged.
    """
    sizes, chance = _sizes(record), chance_of(record)
    small, large = (
        {f"the whole recipe at batch {size:,}": _known(grid, RECIPE, size)} for size in (sizes[0], sizes[-1])
    )
    yield unless_guessing(_held(grid, sizes, tolerated(HELD, chance.images)), chance, small)
    for variant, claim in EXPECTED.items():
        yield unless_guessing(_of_step(grid, variant, claim, sizes[-1]), chance, large)


def _held(grid: Grid, sizes: Sequence[int], within: float) -> Claim:
    claim = f"With the whole recipe {sizes[-1]:,} images a step reach what {sizes[0]:,} do, within {points(within)}."
    small, large = (_known(grid, RECIPE, size) for size in (sizes[0], sizes[-1]))
    if len(sizes) < 2:
        return judge(claim, None, "There is one batch size.")
    if not (small and large):
        why = _why_absent(grid, RECIPE, sizes[-1] if small else sizes[0])
        return judge(claim, None, f"{_name(RECIPE)}: {why}.")
    lost = small.mean - large.mean
    values = f"{percent(large.mean)} against {percent(small.mean)}: {points(lost)}"
    return judge(claim, lost <= within, f"{values} {'behind' if lost > 0 else 'ahead'}.")


def _of_step(grid: Grid, variant: str, claim: str, size: int) -> Claim:
    """Judge whether a variant is worse than the whole recipe or, with statistics frozen at the end, not worse."""
    whole, other = (_known(grid, name, size) for name in (RECIPE, variant))
    arm = grid.get((variant, size))
    if whole and not other and variant != FROZEN and arm and arm.lost and not arm.waiting:
        return judge(claim, True, "Its loss was no longer finite.")
    if not (whole and other):
        missing = variant if whole else RECIPE
        return judge(claim, None, f"{_name(missing)}: {_why_absent(grid, missing, size)}.")
    lost, apart = whole.mean - other.mean, are_apart(whole, other)
    values = f"{percent(other.mean)} against {percent(whole.mean)} with the whole recipe"
    overlap = "" if apart or min(whole.n, other.n) < 2 else "; the seeds' ranges overlap"
    measured = f"{_name(variant)}: {values}, {points(lost)} {'less' if lost > 0 else 'more'}{overlap}."
    return judge(claim, (apart and lost > 0) != (variant == FROZEN), measured)


def _known(grid: Grid, variant: str, size: int) -> Spread | None:
    """Look up an accuracy; None if it was not planned or none of its runs has finished."""
    return arm["accuracy"] if (arm := grid.get((variant, size))) else None


def _why_absent(grid: Grid, variant: str, size: int) -> str:
    arm = grid.get((variant, size))
    if arm is None or not arm.seeds:
        return "not trained"
    return "not ended" if arm.waiting else f"loss no longer finite at batch {size:,}"


def _headline(record: Record, grid: Grid) -> str:
    """Describe the recipe's result at the largest batch, and the best variant or the most important step there."""
    sizes = _sizes(record)
    small, large = (_known(grid, RECIPE, size) for size in (sizes[0], sizes[-1]))
    if large is None:
        return f"The recipe has no accuracy at the largest batch: {_why_absent(grid, RECIPE, sizes[-1])}"
    if is_guessing(large, chance_of(record)):
        said = f"At batch {sizes[-1]:,} the whole recipe is not surely better than guessing: {percent(large.low)}"
        return too_few(chance_of(record)) or said
    found = {variant: _known(grid, variant, sizes[-1]) for variant in EXPECTED if variant != FROZEN}
    apart = {variant: one.mean for variant, one in found.items() if one and are_apart(large, one)}
    above = [variant for variant in apart if apart[variant] > large.mean]
    steps = [variant for variant in apart if variant != PLAIN]  # not a step
    named = max(above, key=apart.__getitem__) if above else min(steps, key=apart.__getitem__, default=None)
    claim = f"The recipe reaches {percent(large.mean)} at batch {sizes[-1]:,}"
    beside = f", {percent(small.mean)} at {sizes[0]:,}" if small and len(sizes) > 1 else ""
    other = f"; {find_recipe(named).summary} {percent(apart[named])}" if named else ""
    return first_fitting(f"{claim}{beside}{other}", f"{claim}{other}", claim)


LEAD = """
{variants_count} of the recipe at {batch_size_count}, {seeds_count} each: {epochs} on {data} for every network, so that
all see the same images as often.
"""
NOTE = "Accuracy is that of {median}. {note}"
METHOD = """
The recipe: at batch B the rate is {lr} · B / {reference_batch} and rises to it from {lr} over {warm_up_epochs}; the
weight of the last normalization of every residual block starts at zero; normalizations and biases have no weight decay;
batch norm normalizes {statistics} images at a time{smaller}. torch's momentum does not hold the rate, so it needs no
correction as the rate moves.

Without linear scaling the rate is that of the reference batch and needs no warm-up. Statistics of the whole batch are
of what is in memory at once, at most {at_once} images.{frozen}

Speed: training images per second, the median of a network's epochs, on {workers}.
"""
FREEZING = " Frozen at the end: batch norms normalize by their running statistics in the last {}."


def _words(record: Record) -> dict[str, str]:
    """Count the items that the sentences name."""
    is_frozen = any(find_recipe(str(variant)).frozen_end for variant in record.config["variants"])
    config, workers, last = record.config, record.resolved.get("workers", 1), last_epochs(record)
    return {
        "warm_up_epochs": counted(config["warm_up"], "epoch"),
        "frozen": FREEZING.format(counted(config["freeze_last"], "epoch")) if is_frozen else "",
        "smaller": ", all of a smaller batch" if min(_sizes(record)) < STATISTICS else "",
        "workers": f"{counted(workers, 'worker')}{' together' * (workers > 1)}",
        "median": "the last epoch" if last == 1 else f"the median of the last {last} epochs",
        "note": seeds_note(record),
        "statistics": str(STATISTICS),
    }


EXPERIMENT = Experiment(
    name="scale",
    config=ScaleConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    trains=lambda config: (SMALL, WHOLE),
)
