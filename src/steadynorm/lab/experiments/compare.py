"""Train the same network with and without batch normalization and compare.

Question: what does batch normalization change for a CNN on CIFAR-10: accuracy, its steadiness, gradient norms?

Expected (the article): about 75 % validation accuracy by epoch 10 with it, near 60 % and unsteady without; lower
and steadier gradient norms with it. With a shallow, well-initialised network the gap may be smaller, and each arm
may prefer its own learning rate: ``--tune-lr`` looks for it, on held-out training images.

On the embedded data the article's settings leave the network without normalization at chance: 1,536 images make 12
steps of 128 an epoch. There the defaults are others, at which both arms train; see ``docs/compare.md``.

Cost: on two cores with bfloat16, about a minute per epoch and arm on CIFAR-10; under two minutes in all on the
embedded data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

from steadynorm.lab.configuration import (
    TrainingConfig,
    check_arms,
    check_at_least,
    check_experiment,
    check_lists,
    check_rates,
    check_split,
    check_training,
    settings_of,
)
from steadynorm.lab.data import hold_out
from steadynorm.lab.describe import (
    PLAIN,
    arm_cell,
    arm_label,
    arm_labels,
    batch_arm,
    batches_label,
    curves,
    data_label,
    data_method,
    plain_arm,
    run_as_json,
    training_method,
)
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.grid import train_grid
from steadynorm.lab.training import Settings
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import compare, is_guessing, judge, unless_guessing
from steadynorm.reporting.numbers import (
    NONE,
    SPACE,
    number,
    percent,
    percent_spread,
    points,
    rate,
    seconds,
    spread_note,
)
from steadynorm.reporting.records import Epoch, Record, RunRecord, RunSpec, Status
from steadynorm.reporting.report import Block, Cell, Claim, Claims, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, are_apart, largest, mean, median, number_or_none, spread
from steadynorm.reporting.words import capital, counted, listing, seeds_label

__all__ = ["EXPERIMENT", "CompareConfig"]

HELD_OUT = 0.1  # share of the training images that judges learning rates
TUNING_SHARE = 4  # a tuning run takes this fraction of the epochs
SEED_OF_HOLD_OUT = 0  # the same images judge every arm and rate
ARTICLE: Mapping[str, Any] = {"widths": (32, 64, 128), "batch_size": 128, "lr": 0.1}
EMBEDDED: Mapping[str, Any] = {"widths": (16, 32, 64), "batch_size": 32, "lr": 0.02}
"""The rate is the best of 0.01, 0.02 and 0.03 for the network without normalization."""
ARTICLES = {
    "batch_size": 128,
    "accumulate": 1,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "epochs": 20,
    "milestones": [10, 15],
}
"""The article's settings, from which a run may differ."""
ARTICLE_EPOCH, WITH_BATCH_NORM, WITHOUT = 10, 0.75, 0.60
"""What the article expects: these validation accuracies by this epoch."""
TOLERANCE = 0.03
"""How far from the article's number still counts as "about": three points."""
MANY = 3  # arms of which each gets a paragraph


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig):
    """Train the article's network once per normalization and seed, and write a report.

    The first run needs no data: it trains on the embedded shapes. For the article's experiment say
    --data cifar10, with --data-dir where the data set already lies on disk.
    """

    widths: tuple[int, ...] | None = None  # type: ignore[assignment] # only until the data is known
    """Channels of each stage of the cnn; default: the article's 32 64 128, on the embedded data 16 32 64."""
    batch_size: int | None = None  # type: ignore[assignment]
    """Images that are normalized together; default: the article's 128, on the embedded data 32."""
    lr: float | None = None  # type: ignore[assignment]
    """Learning rate of SGD, the same for every arm; default: the article's 0.1, on the embedded data 0.02."""
    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare: batch_norm, none, batch_renorm, gated_batch_norm, ghost_batch_norm,
    self_tuned_batch_norm, sync_batch_norm, frozen_batch_norm, torch_batch_norm, layer_norm, group_norm,
    instance_norm."""
    accumulate: int = 1
    """Batches in a step, their gradients averaged: 2 x 64 takes the steps of 128 with the normalization of 2. Running
    statistics of ours that training does not look at move once a step as well."""
    tune_lr: tuple[float, ...] = ()
    """Rates to choose each arm's own best from, in short runs judged on a tenth of the training images;
    the arms are then compared at --lr and, beside it, each at its own."""

    def by_data(self) -> Mapping[str, Any]:
        """Give the article's settings, or those for the embedded data."""
        return EMBEDDED if self.data == "shapes" else ARTICLE


QUICK: dict[str, Any] = {"epochs": 5, "milestones": (3, 4)}


def _work(task: Task[CompareConfig]) -> None:
    """Train every network: first those that choose learning rates, then those that are compared."""
    config = task.config
    settings = settings_of(config, task.record, accumulate=config.accumulate)
    tuned = _tune(task, settings)
    assert config.lr is not None
    rates = {arm: {config.lr} for arm in config.arms}
    for arm in config.arms:
        best = best_rate(tuned, arm)
        if best is not None:
            rates[arm].add(best)
    specs = [
        RunSpec(arm=arm, seed=seed, lr=rate, epochs=config.epochs)
        for seed in config.seeds
        for arm in config.arms
        for rate in sorted(rates[arm])
    ]
    train_grid(
        specs, settings, task.dataset, directory=task.directory, display=task.display, before=tuned, pool=task.pool
    )


def _tune(task: Task[CompareConfig], settings: Settings) -> tuple[RunRecord, ...]:
    """Train short runs at each rate on nine tenths of the training images, judged on the rest."""
    config = task.config
    if not config.tune_lr:
        return ()
    rest, held = hold_out(task.dataset.train, fraction=HELD_OUT, seed=SEED_OF_HOLD_OUT)
    epochs = max(1, config.epochs // TUNING_SHARE)
    scaled = (milestone * epochs // config.epochs for milestone in settings.milestones)
    # A milestone of 0 would lower the rate before the first step, and so try another rate than the one asked for.
    shorter = replace(settings, milestones=tuple(milestone for milestone in scaled if milestone > 0))
    specs = [
        RunSpec(arm=arm, seed=config.seeds[0], lr=rate, epochs=epochs, purpose="tune")
        for arm in config.arms
        for rate in config.tune_lr
    ]
    data = replace(task.dataset, train=rest, validation=held)
    return train_grid(specs, shorter, data, directory=task.directory, display=task.display, pool=task.pool)


def _check(config: CompareConfig) -> None:
    check_arms(config.arms)
    check_lists(config, ("arms", "tune_lr"), may_be_empty=("tune_lr",))
    check_experiment(config)
    assert config.batch_size is not None
    check_split(config.batch_size)
    check_at_least(config, (("batch_size", 2), ("accumulate", 1)))
    check_rates("--tune-lr", config.tune_lr)
    check_training(config)


def describe(record: Record) -> Report:
    """Say what a comparison found."""
    shared, tuned = pictures(record)
    arms, own = [summarise(record, one) for one in shared], [summarise(record, one) for one in tuned]
    drawn = _curves(record, shared)
    return Report(
        headline=_headline(record, arms),
        lead=_lead(record, arms),
        table=Table.of([*arms, *own], SHORT),
        sections=(
            Section(
                title="Result",
                blocks=(
                    Figures(drawn[:1]),
                    _table(record, arms),
                    *map(Text, _write_up(record, arms)),
                ),
            ),
            Section(
                title="What was expected, and what was measured",
                short="Expectations",
                blocks=(Text(_expected_from(record)), Claims(_claims(record, arms))),
            ),
            Section(title="Accuracy and loss", short="Curves", blocks=(Figures(drawn[1:]),)),
            Section(
                title="Gradient norms and time",
                short="Gradients and time",
                blocks=(Figures(_gradients_and_time(record, shared)),),
            ),
            Section(title="Each at its own learning rate", short="Learning rates", blocks=_tuning(record, tuned, own)),
        ),
        method=_method(record),
        finished=_is_finished(record),
        findings={
            "early_epoch": _early_epoch(record),
            "pictures": {
                name: {arm.arm: asdict(arm) for arm in found}
                for name, found in (("shared", arms), ("tuned", own))
                if found
            },
            "runs": [run_as_json(run) for run in record.runs],
        },
    )


@dataclass(frozen=True, kw_only=True)
class ArmRuns:
    """The runs of one arm at one learning rate, one for each seed."""

    arm: str
    lr: float
    runs: tuple[RunRecord, ...]

    def ended(self, status: Status) -> list[RunRecord]:
        """Give the runs that ended so."""
        return [run for run in self.runs if run.status == status]

    @property
    def epochs(self) -> list[Epoch]:
        """Every epoch of every run."""
        return [epoch for run in self.runs for epoch in run.epochs]


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm at one learning rate; every spread is over its seeds.

    What is taken over the epochs (gap, fall, gradient norms) leaves out diverged runs, which have fewer, as long
    as another run is left.
    """

    arm: str
    lr: float
    seeds: int
    """Planned runs, whatever became of them."""
    finished: int
    diverged: int
    diverged_at_step: tuple[int, ...]
    reached_epoch: int
    """The last epoch any run finished."""
    val_accuracy: Spread | None
    """After the last epoch, of the runs that finished."""
    val_accuracy_early: Spread | None
    """After the article's epoch 10, or the middle of a shorter training, of every run that reached it."""
    val_accuracy_reached: Spread | None
    """After the last epoch of each run that has any, finished or not."""
    best_epoch: int | None
    """Where the mean validation accuracy is highest."""
    train_accuracy: Spread | None
    val_loss: Spread | None
    largest_gap: Spread | None
    """Largest excess of training over validation accuracy at any epoch."""
    largest_fall: Spread | None
    """Worst fall of validation accuracy between neighboring epochs, before the rate is first lowered."""
    grad_norm: Spread | None
    """Mean over all epochs of the gradient norm of all parameters."""
    grad_norm_ratio: Spread | None
    """Median over the epochs of the 95th over the 5th percentile within an epoch: 1 is perfectly steady."""
    seconds_per_epoch: float | None
    """Median over all epochs, validation included."""
    images_per_second: float | None
    """Median over all epochs of training alone."""
    parameters: int | None

    @property
    def is_lost(self) -> bool:
        """Whether every run diverged."""
        return 0 < self.seeds == self.diverged

    @property
    def learned(self) -> Spread | None:
        """The accuracy that says whether it learned anything; an arm that diverged is judged by that instead."""
        return None if self.is_lost else self.val_accuracy or self.val_accuracy_reached

    @property
    def label(self) -> str:
        """Its name in a sentence."""
        return arm_label(self.arm)


def summarise(record: Record, arm: ArmRuns) -> ArmSummary:
    """Reduce the runs of one arm to its numbers."""
    early = _early_epoch(record)
    decay = min((int(epoch) for epoch in record.config["milestones"]), default=int(record.config["epochs"]))
    finished, diverged = arm.ended("finished"), arm.ended("diverged")
    last = [run.epochs[-1] for run in finished if run.epochs]
    steady = [run for run in arm.runs if run.status != "diverged"] or arm.runs
    return ArmSummary(
        arm=arm.arm,
        lr=arm.lr,
        seeds=len(arm.runs),
        finished=len(finished),
        diverged=len(diverged),
        diverged_at_step=tuple(run.diverged_at_step for run in diverged if run.diverged_at_step is not None),
        reached_epoch=max((epoch.epoch for epoch in arm.epochs), default=0),
        val_accuracy=spread(epoch.val_accuracy for epoch in last),
        val_accuracy_early=spread(epoch.val_accuracy for epoch in arm.epochs if epoch.epoch == early),
        val_accuracy_reached=spread(run.epochs[-1].val_accuracy for run in arm.runs if run.epochs),
        best_epoch=_best_epoch(arm.epochs),
        train_accuracy=spread(epoch.train_accuracy for epoch in last),
        val_loss=spread(epoch.val_loss for epoch in last),
        largest_gap=spread(largest(one.train_accuracy - one.val_accuracy for one in run.epochs) for run in steady),
        largest_fall=spread(largest_fall(run, until=decay) for run in steady),
        grad_norm=spread(mean(epoch.grad_norm_mean for epoch in run.epochs) for run in steady),
        grad_norm_ratio=spread(median(map(_steadiness, run.epochs)) for run in steady),
        seconds_per_epoch=number_or_none(median(epoch.seconds for epoch in arm.epochs)),
        images_per_second=number_or_none(median(epoch.images_per_second for epoch in arm.epochs)),
        parameters=max((run.parameters for run in arm.runs), default=0) or None,
    )


def best_rate(runs: Iterable[RunRecord], arm: str) -> float | None:
    """Choose the learning rate of an arm from its ``tune`` runs.

    It is the one with the highest held-out accuracy after the last epoch; of equals, the smallest. A run that diverged,
    has not finished, or ended with an accuracy that is no number is no candidate.

    Args:
        runs: any runs; other arms and other purposes are passed over.
        arm: registered name of the normalization.

    Returns:
        the rate before any decay, or None where no run can be used.
    """
    candidates = [
        (-run.epochs[-1].val_accuracy, run.spec.lr)
        for run in runs
        if run.spec.purpose == "tune" and run.spec.arm == arm and run.status == "finished" and run.epochs
    ]
    return min((pair for pair in candidates if math.isfinite(pair[0])), default=(0.0, None))[1]


def pictures(record: Record) -> tuple[tuple[ArmRuns, ...], tuple[ArmRuns, ...]]:
    """Give the arms at the shared rate and, once tuning is over, each at its own.

    The second holds the arms that have a best rate; where that is the shared rate, the same runs serve both. It is
    empty while any ``tune`` run still waits, because the best rates may change.
    """
    arms = [str(arm) for arm in record.config["arms"]]
    shared = tuple(_arm_runs(record.runs, arm, float(record.config["lr"])) for arm in arms)
    tune = [run for run in record.runs if run.spec.purpose == "tune"]
    if any(run.status in ("waiting", "running") for run in tune):
        return shared, ()
    rates = {arm: best_rate(tune, arm) for arm in arms}
    return shared, tuple(_arm_runs(record.runs, arm, rate) for arm, rate in rates.items() if rate is not None)


def largest_fall(run: RunRecord, *, until: int) -> float:
    """How far validation accuracy fell from one epoch to the next, at worst, up to epoch ``until``.

    Returns:
        a share >= 0; NaN where fewer than two epochs can be compared.
    """
    values = [epoch.val_accuracy for epoch in run.epochs if epoch.epoch <= until]
    worst = largest(before - after for before, after in itertools.pairwise(values))
    return max(0.0, worst) if math.isfinite(worst) else worst


def _arm_runs(runs: Iterable[RunRecord], arm: str, lr: float) -> ArmRuns:
    chosen = [run for run in runs if (run.spec.purpose, run.spec.arm, run.spec.lr) == ("compare", arm, lr)]
    return ArmRuns(arm=arm, lr=lr, runs=tuple(sorted(chosen, key=lambda run: run.spec.seed)))


def _early_epoch(record: Record) -> int:
    """Give the epoch at which the arms are compared early: the article's 10, or the middle if shorter."""
    planned = int(record.config["epochs"])
    return ARTICLE_EPOCH if planned >= ARTICLE_EPOCH else max(1, (planned + 1) // 2)


def _best_epoch(epochs: Sequence[Epoch]) -> int | None:
    found = {one.epoch: spread(other.val_accuracy for other in epochs if other.epoch == one.epoch) for one in epochs}
    means = {epoch: value.mean for epoch, value in sorted(found.items()) if value}
    return max(means, key=lambda epoch: means[epoch], default=None)


def _steadiness(epoch: Epoch) -> float:
    return epoch.grad_norm_p95 / epoch.grad_norm_p5 if epoch.grad_norm_p5 > 0 else math.nan


def _is_finished(record: Record) -> bool:
    """Whether every planned run has ended, one way or the other."""
    ended = all(run.status in ("finished", "diverged") for run in record.runs)
    planned = len(record.config["seeds"])
    return ended and all(len(arm.runs) == planned for arms in pictures(record) for arm in arms)


# What the tables show.

SHORT: Mapping[str, Callable[[ArmSummary], str]] = {
    "arm": lambda arm: arm.arm,
    "learning rate": lambda arm: rate(arm.lr),
    "seeds": lambda arm: str(arm.seeds),
    "validation accuracy": lambda arm: _short_accuracy(arm),
    "gradient norm": lambda arm: number(arm.grad_norm.mean if arm.grad_norm else None),
    "s/epoch": lambda arm: seconds(arm.seconds_per_epoch),
}


def _table(record: Record, arms: Sequence[ArmSummary], *, with_rate: bool = False) -> Table:
    """Lay out a row for each arm, with its learning rate where they differ."""
    own: dict[str, Callable[[ArmSummary], Cell | str]] = (
        {"Learning rate": lambda arm: rate(arm.lr)} if with_rate else {}
    )
    return Table.of(
        arms,
        {
            "Normalization": lambda arm: arm_cell(record, arm.arm),
            **own,
            "Final validation accuracy": _accuracy,
            f"At epoch {_early_epoch(record)}": lambda arm: percent_spread(arm.val_accuracy_early),
            "Training ahead, at most": _gap,
            "Gradient norm": lambda arm: Cell(
                text=number(arm.grad_norm.mean if arm.grad_norm else None),
                note=f"p95/p5 {number(arm.grad_norm_ratio.mean)}" if arm.grad_norm_ratio else "",
            ),
            "Time per epoch": lambda arm: Cell(
                text=seconds(arm.seconds_per_epoch),
                note=f"{arm.images_per_second:,.0f}{SPACE}images/s" if arm.images_per_second else "",
            ),
            "Status": lambda arm: _status(record, arm),
        },
    )


def _gap(arm: ArmSummary) -> str:
    if arm.largest_gap is None:
        return NONE
    return points(arm.largest_gap.mean) if arm.largest_gap.mean > 0 else "never ahead"


def _accuracy(arm: ArmSummary) -> Cell:
    if arm.val_accuracy is not None:
        return Cell(text=percent_spread(arm.val_accuracy), note=spread_note(arm.val_accuracy), tone="strong")
    if arm.val_accuracy_reached is None:
        return Cell(text=NONE)
    until = "when it diverged after" if arm.is_lost else "so far, at"
    return Cell(text=NONE, note=f"{percent(arm.val_accuracy_reached.mean)} {until} epoch {arm.reached_epoch}")


def _short_accuracy(arm: ArmSummary) -> str:
    accuracy = percent_spread(arm.val_accuracy) if arm.val_accuracy else f"epoch {arm.reached_epoch}, not finished"
    if not arm.diverged:
        return accuracy
    lost = f"diverged at step {', '.join(map(str, arm.diverged_at_step))}"
    return f"{accuracy}; {lost}" if arm.val_accuracy else lost


def _status(record: Record, arm: ArmSummary) -> Cell:
    """Say how the runs of an arm ended, or how far they are."""
    missing = arm.seeds - arm.finished - arm.diverged
    open_ = f"{arm.finished} of {arm.seeds} seeds finished" if missing and arm.seeds > 1 else ""
    if arm.diverged:
        where = f"diverged{_at_steps(arm)}"
        return Cell(text=where if arm.seeds == 1 else f"{arm.diverged} of {arm.seeds} {where}", tone="bad", note=open_)
    if arm.seeds and arm.finished == arm.seeds:
        return Cell(text="finished", note="" if arm.seeds == 1 else f"{arm.seeds} seeds")
    if arm.reached_epoch == 0:
        return Cell(text="waiting", tone="muted")
    return Cell(text=f"epoch {arm.reached_epoch} of {record.config['epochs']}", note=open_)


def _at_steps(arm: ArmSummary) -> str:
    steps = listing([f"{step:,}" for step in arm.diverged_at_step])
    return f" at step {steps}" if steps else ""


# The figures.


def _curves(record: Record, arms: Sequence[ArmRuns]) -> list[Figure]:
    if not any(arm.epochs or arm.ended("diverged") for arm in arms):
        return []
    return [
        _over_epochs(record, arms, "val_accuracy", "Validation accuracy", "After each epoch, in evaluation mode."),
        _over_epochs(record, arms, "train_accuracy", "Training accuracy", "Measured during the epoch."),
        _over_epochs(record, arms, "val_loss", "Validation loss", "Mean cross-entropy in nats."),
        _over_epochs(
            record, arms, "train_loss", "Training loss", "Mean cross-entropy in nats, measured during the epoch."
        ),
    ]


def _over_epochs(record: Record, arms: Sequence[ArmRuns], column: str, title: str, caption: str) -> Figure:
    return curves(
        {arm_label(arm.arm): arm.runs for arm in arms if arm.runs},
        attrgetter(column),
        name=column,
        title=title,
        caption=caption,
        order=arm_labels(record),
        config=record.config,
        percent=column.endswith("accuracy"),
    )


def _gradients_and_time(record: Record, arms: Sequence[ArmRuns]) -> list[Figure]:
    if not any(arm.epochs or arm.ended("diverged") for arm in arms):
        return []
    norms = curves(
        {arm_label(arm.arm): arm.runs for arm in arms if arm.runs},
        attrgetter("grad_norm_mean"),
        name="grad_norm",
        title="Gradient norm of all parameters",
        caption="Of the l2 norm, at each step.",
        order=arm_labels(record),
        config=record.config,
        steps=(attrgetter("grad_norm_p5"), attrgetter("grad_norm_p95")),
    )
    return [norms, *_layers(record, arms), *_time(record, arms)]


def _layers(record: Record, arms: Sequence[ArmRuns]) -> Iterator[Figure]:
    """Draw the gradient norm of each weight at the first and the last epoch; nothing where no norms were kept."""
    rows = [
        {
            "arm": arm_label(arm.arm),
            "epoch": one.epoch,
            "layer": one.layer,
            "norm": one.mean,
            "p5": one.p5,
            "p95": one.p95,
        }
        for arm in arms
        for run in arm.runs
        for one in run.layers
        if math.isfinite(one.mean + one.p5 + one.p95)
    ]
    epochs = sorted({one.epoch for arm in arms for run in arm.runs for one in run.layers})
    for name, epoch in zip(("layers_first", "layers_last"), dict.fromkeys(epochs[:1] + epochs[-1:]), strict=False):
        yield Figure(
            name=name,
            title=f"Gradient norm of each weight, epoch {epoch}",
            caption="First layer on top. Dot: mean over the epoch's steps. Line: 5th to 95th percentile of the steps.",
            kind="dot_ranges",
            data=[row for row in rows if row["epoch"] == epoch],
            options={
                "rows": "layer",
                "x": "norm",
                "hue": "arm",
                "order": arm_labels(record),
                "ends": ("p5", "p95"),
                "x_title": "l2 norm",
            },
        )


def _time(record: Record, arms: Sequence[ArmRuns]) -> Iterator[Figure]:
    times = {arm_label(arm.arm): median(epoch.seconds for epoch in arm.epochs) for arm in arms}
    rows = [
        {"arm": arm, "seconds": value, "text": seconds(value)} for arm, value in times.items() if math.isfinite(value)
    ]
    if rows:
        yield Figure(
            name="time",
            title="Time for one epoch",
            caption="Median over all epochs, validation included.",
            kind="bars",
            data=rows,
            options={"rows": "arm", "x": "seconds", "text": "text", "order": arm_labels(record)},
        )


def _tuning(record: Record, tuned: Sequence[ArmRuns], arms: Sequence[ArmSummary]) -> tuple[Block, ...]:
    """Show how each arm's own rate was chosen, and the arms at these rates; nothing before a ``tune`` run has ended."""
    ended = [run for run in record.runs if run.spec.purpose == "tune" and run.status in ("finished", "diverged")]
    if not ended:
        return ()
    figures = [_rates(record, ended)]
    if any(arm.epochs or arm.ended("diverged") for arm in tuned):
        labels = {f"{arm_label(arm.arm)}, {rate(arm.lr)}": arm.runs for arm in tuned if arm.runs}
        figures.append(
            curves(
                labels,
                attrgetter("val_accuracy"),
                name="val_accuracy_tuned",
                title="Validation accuracy, each at its own best rate",
                caption="After each epoch, in evaluation mode.",
                order=[f"{arm_label(arm.arm)}, {rate(arm.lr)}" for arm in tuned],
                config=record.config,
                percent=True,
            )
        )
    table = (_table(record, arms, with_rate=True),) if arms else ()
    return (Text(_tuning_note(record, arms)), *table, Figures(figures))


def _rates(record: Record, ended: Sequence[RunRecord]) -> Figure:
    """Draw held-out accuracy over the learning rate."""
    finished = [run for run in ended if run.status == "finished" and run.epochs]
    rows = [
        {"arm": arm_label(run.spec.arm), "rate": run.spec.lr, "accuracy": run.epochs[-1].val_accuracy}
        for run in sorted(finished, key=lambda run: run.spec.lr)
    ]
    best = {arm_label(arm): best_rate(ended, arm) for arm in map(str, record.config["arms"])}
    lost = [run for run in ended if run.status == "diverged"]
    crosses = [{"arm": arm_label(run.spec.arm), "rate": run.spec.lr, "accuracy": math.nan} for run in lost]
    epochs = counted(max(run.spec.epochs for run in ended), "epoch")
    crossed = " A cross at the foot marks a rate at which the run diverged." if lost else ""
    return Figure(
        name="rates",
        title="Held-out accuracy by learning rate",
        caption=f"After {epochs}, on training images kept aside. A ring marks an arm's best rate.{crossed}",
        kind="lines",
        data=rows or [{"arm": "", "rate": math.nan, "accuracy": math.nan}],
        options={
            "x": "rate",
            "y": "accuracy",
            "hue": "arm",
            "order": arm_labels(record),
            "x_title": "learning rate",
            "x_log": True,
            "x_values": sorted({run.spec.lr for run in ended}),
            "percent": True,
            "dots": True,
        },
        marks={"rings": [row for row in rows if row["rate"] == best[str(row["arm"])]], "crosses": crosses},
    )


# What is claimed.


def _claims(record: Record, arms: Sequence[ArmSummary]) -> list[Claim]:
    """Judge the article's expectations at its learning rate.

    On CIFAR-10 the numbers themselves are judged; on other data only their direction.
    """
    named = {arm.arm: arm for arm in arms}
    batch, plain = named.get(batch_arm(named) or ""), named.get(plain_arm(named) or "")
    epoch = _early_epoch(record)
    if record.config["data"] == "cifar10":
        judged = [
            _near(batch, "Batch norm is at about", WITH_BATCH_NORM, epoch, more_is_fine=True),
            _near(plain, "Without normalization accuracy is near", WITHOUT, epoch, more_is_fine=False),
        ]
    else:
        judged = [
            _of_two(
                f"Batch norm is ahead at epoch {epoch}.",
                batch,
                plain,
                "val_accuracy_early",
                "validation accuracy",
                percent,
            )
        ]
    judged += [
        _steadier(batch, plain),
        _of_two("Gradient norms are lower with batch norm.", batch, plain, "grad_norm", "mean over the epochs", number),
        _of_two(
            "Gradient norms are steadier with batch norm.",
            batch,
            plain,
            "grad_norm_ratio",
            "95th over 5th percentile within an epoch",
            number,
        ),
    ]
    networks = {arm.label: arm.learned for arm in (batch, plain) if arm}
    return [unless_guessing(item, chance_of(record), networks) for item in judged]


def _near(arm: ArmSummary | None, start: str, target: float, epoch: int, *, more_is_fine: bool) -> Claim:
    claim = f"{start} {percent(target, digits=0)} by epoch {ARTICLE_EPOCH}."
    reached = arm.val_accuracy_early if arm and epoch == ARTICLE_EPOCH else None
    if reached is None:
        return judge(claim, False if arm and arm.is_lost else None, _why_absent(arm))
    excess = reached.mean - target
    where = f"{points(excess)} {'above' if excess > 0 else 'below'} the article's figure"
    seeds = (
        f" (mean of {reached.n} seeds, from {percent(reached.low)} to {percent(reached.high)})" if reached.n > 1 else ""
    )
    met = excess >= -TOLERANCE and (more_is_fine or excess <= TOLERANCE)
    return judge(claim, met, f"{percent(reached.mean)} at epoch {epoch}{seeds}, {where}.")


def _steadier(batch: ArmSummary | None, plain: ArmSummary | None) -> Claim:
    """Judge whose accuracy falls less; where one arm alone diverged, that settles it."""
    claim = "Without normalization validation accuracy is the less steady one."
    lost = [arm for arm in (batch, plain) if arm and arm.is_lost]
    if batch and plain and len(lost) == 1:
        why = _why_absent(lost[0])
        return judge(claim, lost == [plain], f"{capital(lost[0].label)}: {why[:1].lower()}{why[1:]}")
    what = "worst fall from one epoch to the next before the rate is first lowered"
    return _of_two(claim, batch, plain, "largest_fall", what, points)


def _of_two(
    claim: str,
    batch: ArmSummary | None,
    plain: ArmSummary | None,
    quantity: str,
    what: str,
    shown: Callable[[float], str],
) -> Claim:
    """Compare the two arms, where both have the same number of epochs or the quantity is of one epoch."""
    early = quantity == "val_accuracy_early"
    if batch and plain and not early and batch.reached_epoch != plain.reached_epoch:
        reached = f"{counted(batch.reached_epoch, 'epoch')} with batch norm and {plain.reached_epoch} without"
        return judge(claim, None, f"{reached} cannot be compared.")
    first, second = (getattr(arm, quantity) if arm else None for arm in (batch, plain))
    return compare(
        claim,
        first,
        second,
        higher=early,
        what=what,
        names=("with batch norm", "without"),
        shown=shown,
        absent=_why_absent(plain if first else batch),
    )


def _why_absent(arm: ArmSummary | None) -> str:
    if arm is None:
        return "The arm was not trained."
    if arm.is_lost:
        return f"Every run diverged,{_at_steps(arm)}."
    return f"The runs have {counted(arm.reached_epoch, 'epoch')}."


# What is said in sentences.


def _headline(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say what the arms at the shared rate show."""
    measured = sorted((arm for arm in arms if arm.val_accuracy), key=_final, reverse=True)
    failed = [arm.label for arm in arms if arm.is_lost]
    if not measured:
        return _nothing_to_compare(record, arms, failed)
    best, *others = measured
    pair = {batch_arm([arm.arm for arm in measured]), PLAIN}
    if best.arm in pair:  # the other of the article's two comes next
        others.sort(key=lambda arm: arm.arm not in pair)
    chance, score = chance_of(record), percent(_final(best))
    claim = f"{capital(best.label)} reaches {score} on {data_label(record)}"
    if is_guessing(best.val_accuracy, chance):
        return f"No network is surely better than guessing; the best, {best.label}, reaches {score}"
    if failed:
        return f"{claim}; {listing(failed)} {'diverges' if len(failed) == 1 else 'diverge'}"
    if not others:
        return claim
    other, its_score = others[0], percent(_final(others[0]))
    if is_guessing(other.val_accuracy, chance):
        return f"{claim}; {other.label} is at chance: {its_score}"
    if not are_apart(best.val_accuracy, other.val_accuracy):
        return f"{capital(best.label)} and {other.label} end within their seeds' range: {score} and {its_score}"
    return f"{claim}, {other.label} {its_score}: {points(_final(best) - _final(other))} apart"


def _nothing_to_compare(record: Record, arms: Sequence[ArmSummary], failed: Sequence[str]) -> str:
    if arms and len(failed) == len(arms):
        return f"Every network diverged at learning rate {rate(record.config['lr'])}"
    if _is_finished(record):
        return "No network ended with a validation accuracy"
    reached = max((arm.reached_epoch for arm in arms), default=0)
    return f"No network has finished yet: epoch {reached} of {record.config['epochs']}"


def _lead(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say on what the headline rests: network, epochs, rate, seeds, and whether it is complete."""
    config, seeds = record.config, max((arm.seeds for arm in arms), default=0)
    lost = [f"{arm.diverged} of {arm.seeds} runs with {arm.label}" for arm in arms if arm.diverged and not arm.is_lost]
    return (
        f"The same network ({config['network']}) in {len(arms)} variants that differ in normalization alone, "
        f"trained for {counted(config['epochs'], 'epoch')} on {data_label(record)} with learning rate "
        f"{rate(config['lr'])} and {batches_label(record)}; {seeds_label(seeds)}."
    ) + (f" Diverged, and left out of final means: {listing(lost)}." if lost else "")


def _write_up(record: Record, arms: Sequence[ArmSummary]) -> list[str]:
    """Write a paragraph for each arm, best first, and one on what the seeds allow to say.

    Of many arms the best and the article's two are told; the table has them all.
    """
    ranked = sorted((arm for arm in arms if arm.val_accuracy_reached), key=_final, reverse=True)
    pair = (batch_arm([arm.arm for arm in arms]), PLAIN)
    told = ranked if len(ranked) <= MANY else [arm for arm in ranked if arm is ranked[0] or arm.arm in pair]
    never = [arm for arm in arms if arm.val_accuracy_reached is None and arm.diverged]
    seeds = {arm.val_accuracy.n for arm in ranked if arm.val_accuracy}
    note = (
        "Spreads are the standard deviation over seeds; notes give their range."
        if max(seeds, default=0) > 1
        else "There is one seed for each arm: another would move these numbers by an unknown amount."
    )
    return [
        *(_about(record, arm) for arm in told),
        *(f"{capital(arm.label)}: diverged before the first epoch ended." for arm in never),
        *([note] if seeds else []),
    ]


def _about(record: Record, arm: ArmSummary) -> str:
    """Tell one arm's story."""
    early, final, reached = arm.val_accuracy_early, arm.val_accuracy, arm.val_accuracy_reached
    parts = []
    if final is not None:
        start = f"{percent(early.mean)} at epoch {_early_epoch(record)} and " if early else ""
        highest = f", highest at epoch {arm.best_epoch}" if arm.best_epoch != arm.reached_epoch else ""
        parts.append(f"{start}{percent(final.mean)} after {counted(record.config['epochs'], 'epoch')}{highest}.")
    elif reached is not None:
        parts.append(f"{percent(reached.mean)} at epoch {arm.reached_epoch}.")
    if arm.diverged:
        who = "Its run" if arm.seeds == 1 else f"{arm.diverged} of {arm.seeds} runs"
        parts.append(f"{who} diverged{_at_steps(arm)}.")
    if arm.grad_norm and arm.grad_norm_ratio:
        parts.append(
            f"Its gradient norm averages {number(arm.grad_norm.mean)}, and within an epoch its 95th "
            f"percentile is {number(arm.grad_norm_ratio.mean)} times its 5th."
        )
    if arm.seconds_per_epoch is not None:
        parts.append(f"An epoch takes {seconds(arm.seconds_per_epoch)}.")
    return f"{capital(arm.label)}: {' '.join(parts)}"


def _expected_from(record: Record) -> str:
    """Say whose expectations these are, and how far this run may be held against them."""
    if record.config["data"] != "cifar10":
        return (
            f"The article's figures are for CIFAR-10: about {percent(WITH_BATCH_NORM, digits=0)} by epoch 10 "
            f"with batch norm, near {percent(WITHOUT, digits=0)} without. On {data_label(record)} only the "
            "direction can be compared."
        )
    changed = _deviations(record)
    settings = f"though this run differs from its settings: {listing(changed)}" if changed else "at its own settings"
    return f'The article\'s expectations, {settings}. "About" and "near" allow {points(TOLERANCE, digits=0)}.'


def _deviations(record: Record) -> list[str]:
    """Say where the configuration leaves the article's."""

    def text(value: object) -> str:
        return listing([str(item) for item in value]) if isinstance(value, list) else f"{value:g}"

    return [
        f"{key.replace('_', ' ')} {text(record.config[key])} instead of {text(value)}"
        for key, value in ARTICLES.items()
        if record.config.get(key, value) != value
    ]


def _tuning_note(record: Record, tuned: Sequence[ArmSummary]) -> str:
    """Say how rates were chosen and what became of the comparison."""
    tried = listing([rate(float(lr)) for lr in record.config["tune_lr"]])
    how = (
        f"One rate for all may suit one arm better than another. Rates {tried} were tried with short runs judged on "
        " training images kept aside; then each arm was trained at its best one."
    )
    measured = sorted((arm for arm in tuned if arm.val_accuracy), key=_final, reverse=True)
    if not tuned:
        return f"{how} The choice is not complete yet."
    if len(measured) < 2:
        return how
    best, other, *_ = measured
    overlap = "" if are_apart(best.val_accuracy, other.val_accuracy) else ", within the range of their seeds"
    return (
        f"{how} There {best.label} (rate {rate(best.lr)}) ends at {percent(_final(best))} and {other.label} "
        f"(rate {rate(other.lr)}) at {percent(_final(other))}: {points(_final(best) - _final(other))} apart{overlap}."
    )


def _final(arm: ArmSummary) -> float:
    return arm.val_accuracy.mean if arm.val_accuracy else -1.0


def _method(record: Record) -> list[str]:
    tuned = "Learning rates were chosen on training images kept aside, never on the validation images."
    return [
        f"{data_method(record)} A seed decides the initial weights, the order of the images and their augmentation, "
        "alike in every arm.",
        *training_method(record),
        "The gradient norm is the l2 norm over all parameters, at every step, before the step is taken. Its steadiness "
        "is the 95th over the 5th percentile of the steps of an epoch, then the median over the epochs.",
        "A run whose loss stops being finite is stopped and counted as diverged; means of final accuracy are over the "
        "runs that finished.",
        *([tuned] if record.config["tune_lr"] else []),
    ]


EXPERIMENT = Experiment(name="compare", config=CompareConfig, quick=QUICK, check=_check, work=_work, describe=describe)
