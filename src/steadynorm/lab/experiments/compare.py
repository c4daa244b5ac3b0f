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
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from steadynorm.lab.configuration import (
    OneRateConfig,
    check_arms,
    check_at_least,
    check_experiment,
    check_lists,
    check_one_rate,
    check_rates,
    check_split,
    settings_of,
)
from steadynorm.lab.data import hold_out
from steadynorm.lab.describe import (
    PLAIN,
    accuracy_entry,
    arm_cell,
    arm_label,
    arm_labels,
    batch_arm,
    batches_label,
    curves,
    data_label,
    data_method,
    diverged_at_steps,
    expected,
    finals,
    has_ended,
    networks_as_json,
    plain_arm,
    training_method,
)
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.training import Settings, network, train_networks
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
)
from steadynorm.reporting.records import Cell, Record, Status
from steadynorm.reporting.report import Block, Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
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
class CompareConfig(OneRateConfig):
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
    networks = [
        network(arm=arm, seed=seed, lr=rate, epochs=config.epochs)
        for seed in config.seeds
        for arm in config.arms
        for rate in sorted(rates[arm])
    ]
    train_networks(task, networks, settings)


def _tune(task: Task[CompareConfig], settings: Settings) -> list[Cell]:
    """Train short runs at each rate on nine tenths of the training images, judged on the rest."""
    config = task.config
    if not config.tune_lr:
        return []
    rest, held = hold_out(task.dataset.train, fraction=HELD_OUT, seed=SEED_OF_HOLD_OUT)
    epochs = max(1, config.epochs // TUNING_SHARE)
    scaled = (milestone * epochs // config.epochs for milestone in settings.milestones)
    # A milestone of 0 would lower the rate before the first step, and so try another rate than the one asked for.
    shorter = replace(settings, milestones=tuple(milestone for milestone in scaled if milestone > 0))
    networks = [
        network(arm=arm, seed=config.seeds[0], lr=rate, epochs=epochs, purpose="tune")
        for arm in config.arms
        for rate in config.tune_lr
    ]
    return train_networks(task, networks, shorter, dataset=replace(task.dataset, train=rest, validation=held))


def _check(config: CompareConfig) -> None:
    check_arms(config.arms)
    check_lists(config, ("arms", "tune_lr"), may_be_empty=("tune_lr",))
    check_experiment(config)
    assert config.batch_size is not None
    check_split(config.batch_size)
    check_at_least(config, (("batch_size", 2), ("accumulate", 1)))
    check_rates("--tune-lr", config.tune_lr)
    check_one_rate(config)


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
            expected(
                Text(_expected_from(record)),
                Claims(_claims(record, arms)),
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
            "runs": networks_as_json(record),
        },
    )


@dataclass(frozen=True, kw_only=True)
class ArmRuns:
    """The networks of one arm at one learning rate, one for each seed."""

    arm: str
    lr: float
    runs: tuple[Cell, ...]

    def ended(self, status: Status) -> list[Cell]:
        """Give the networks that ended so."""
        return [run for run in self.runs if run.status == status]

    def every(self, quantity: str) -> list[float]:
        """Give the values of all epochs of all networks."""
        return [value for run in self.runs for value in run.series(quantity).values()]

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to draw."""
        return any(run.measurements for run in self.runs)


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
    accuracies = [run.series("val_accuracy") for run in arm.runs if run.series("val_accuracy")]
    steady = [run for run in arm.runs if run.status != "diverged"] or arm.runs
    return ArmSummary(
        arm=arm.arm,
        lr=arm.lr,
        seeds=len(arm.runs),
        finished=len(finished),
        diverged=len(diverged),
        diverged_at_step=diverged_at_steps(diverged),
        reached_epoch=max(itertools.chain(*accuracies), default=0),
        val_accuracy=spread(finals(finished).values()),
        val_accuracy_early=spread(one[early] for one in accuracies if early in one),
        val_accuracy_reached=spread(one[max(one)] for one in accuracies),
        best_epoch=_best_epoch(accuracies),
        train_accuracy=spread(finals(finished, "train_accuracy").values()),
        val_loss=spread(finals(finished, "val_loss").values()),
        largest_gap=spread(largest(_both(run, operator.sub, "train_accuracy", "val_accuracy")) for run in steady),
        largest_fall=spread(largest_fall(run, until=decay) for run in steady),
        grad_norm=spread(mean(run.series("grad_norm_mean").values()) for run in steady),
        grad_norm_ratio=spread(median(_both(run, _ratio, "grad_norm_p95", "grad_norm_p5")) for run in steady),
        seconds_per_epoch=number_or_none(median(arm.every("seconds"))),
        images_per_second=number_or_none(median(arm.every("images_per_second"))),
        parameters=int(max((run.series("parameters").get(0, 0) for run in arm.runs), default=0)) or None,
    )


def _both(run: Cell, make: Callable[[float, float], float], first: str, second: str) -> Iterator[float]:
    """Give, for each epoch, what is made of two quantities."""
    return map(make, run.series(first).values(), run.series(second).values())


def _ratio(high: float, low: float) -> float:
    return high / low if low > 0 else math.nan


def best_rate(runs: Iterable[Cell], arm: str) -> float | None:
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
        (-run.last("val_accuracy"), run.factors["lr"])
        for run in runs
        if run.factors.get("purpose") == "tune" and run.factors["arm"] == arm and run.status == "finished"
    ]
    return min((pair for pair in candidates if math.isfinite(pair[0])), default=(0.0, None))[1]


def pictures(record: Record) -> tuple[tuple[ArmRuns, ...], tuple[ArmRuns, ...]]:
    """Give the arms at the shared rate and, once tuning is over, each at its own.

    The second holds the arms that have a best rate; where that is the shared rate, the same runs serve both. It is
    empty while any ``tune`` run still waits, because the best rates may change.
    """
    arms = [str(arm) for arm in record.config["arms"]]
    shared = tuple(_arm_runs(record, arm, float(record.config["lr"])) for arm in arms)
    tune = record.select(purpose="tune")
    if not all(run.has_ended for run in tune):
        return shared, ()
    rates = {arm: best_rate(tune, arm) for arm in arms}
    return shared, tuple(_arm_runs(record, arm, rate) for arm, rate in rates.items() if rate is not None)


def largest_fall(run: Cell, *, until: int) -> float:
    """How far validation accuracy fell from one epoch to the next, at worst, up to epoch ``until``.

    Returns:
        a share >= 0; NaN where fewer than two epochs can be compared.
    """
    values = [value for epoch, value in run.series("val_accuracy").items() if epoch <= until]
    worst = largest(before - after for before, after in itertools.pairwise(values))
    return max(0.0, worst) if math.isfinite(worst) else worst


def _arm_runs(record: Record, arm: str, lr: float) -> ArmRuns:
    chosen = record.select(purpose=None, arm=arm, lr=lr)
    return ArmRuns(arm=arm, lr=lr, runs=tuple(sorted(chosen, key=lambda run: run.factors["seed"])))


def _early_epoch(record: Record) -> int:
    """Give the epoch at which the arms are compared early: the article's 10, or the middle if shorter."""
    planned = int(record.config["epochs"])
    return ARTICLE_EPOCH if planned >= ARTICLE_EPOCH else max(1, (planned + 1) // 2)


def _best_epoch(accuracies: Sequence[dict[int, float]]) -> int | None:
    found = {epoch: spread(one[epoch] for one in accuracies if epoch in one) for one in accuracies for epoch in one}
    means = {epoch: value.mean for epoch, value in sorted(found.items()) if value}
    return max(means, key=lambda epoch: means[epoch], default=None)


def _is_finished(record: Record) -> bool:
    """Whether every planned run has ended, one way or the other."""
    planned = len(record.config["seeds"])
    return has_ended(record) and all(len(arm.runs) == planned for arms in pictures(record) for arm in arms)


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
    own: dict[str, Callable[[ArmSummary], Entry | str]] = (
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
            "Gradient norm": lambda arm: Entry(
                text=number(arm.grad_norm.mean if arm.grad_norm else None),
                note=f"p95/p5 {number(arm.grad_norm_ratio.mean)}" if arm.grad_norm_ratio else "",
            ),
            "Time per epoch": lambda arm: Entry(
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


def _accuracy(arm: ArmSummary) -> Entry:
    if arm.val_accuracy is not None:
        return accuracy_entry(arm.val_accuracy, "strong")
    if arm.val_accuracy_reached is None:
        return Entry(text=NONE)
    until = "when it diverged after" if arm.is_lost else "so far, at"
    return Entry(text=NONE, note=f"{percent(arm.val_accuracy_reached.mean)} {until} epoch {arm.reached_epoch}")


def _short_accuracy(arm: ArmSummary) -> str:
    accuracy = percent_spread(arm.val_accuracy) if arm.val_accuracy else f"epoch {arm.reached_epoch}, not finished"
    if not arm.diverged:
        return accuracy
    lost = f"diverged at step {', '.join(map(str, arm.diverged_at_step))}"
    return f"{accuracy}; {lost}" if arm.val_accuracy else lost


def _status(record: Record, arm: ArmSummary) -> Entry:
    """Say how the runs of an arm ended, or how far they are."""
    missing = arm.seeds - arm.finished - arm.diverged
    open_ = f"{arm.finished} of {arm.seeds} seeds finished" if missing and arm.seeds > 1 else ""
    if arm.diverged:
        where = f"diverged{_at_steps(arm)}"
        return Entry(text=where if arm.seeds == 1 else f"{arm.diverged} of {arm.seeds} {where}", tone="bad", note=open_)
    if arm.seeds and arm.finished == arm.seeds:
        return Entry(text="finished", note="" if arm.seeds == 1 else f"{arm.seeds} seeds")
    if arm.reached_epoch == 0:
        return Entry(text="waiting", tone="muted")
    return Entry(text=f"epoch {arm.reached_epoch} of {record.config['epochs']}", note=open_)


def _at_steps(arm: ArmSummary) -> str:
    steps = listing([f"{step:,}" for step in arm.diverged_at_step])
    return f" at step {steps}" if steps else ""


# The figures.


def _curves(record: Record, arms: Sequence[ArmRuns]) -> list[Figure]:
    if not any(arm.is_begun for arm in arms):
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
        column,
        title=title,
        caption=caption,
        order=arm_labels(record),
        config=record.config,
    )


def _gradients_and_time(record: Record, arms: Sequence[ArmRuns]) -> list[Figure]:
    if not any(arm.is_begun for arm in arms):
        return []
    norms = curves(
        {arm_label(arm.arm): arm.runs for arm in arms if arm.runs},
        "grad_norm_mean",
        name="grad_norm",
        title="Gradient norm of all parameters",
        caption="Of the l2 norm, at each step.",
        order=arm_labels(record),
        config=record.config,
        steps=("grad_norm_p5", "grad_norm_p95"),
    )
    return [norms, *_layers(record, arms), *_time(record, arms)]


def _layers(record: Record, arms: Sequence[ArmRuns]) -> Iterator[Figure]:
    """Draw the gradient norm of each weight at the first and the last epoch; nothing where no norms were kept."""
    rows: list[dict[str, Any]] = [
        {"arm": arm_label(arm.arm), "epoch": epoch, "layer": layer, "norm": norm}
        | {end: run.series(f"grad_norm_{end}", layer)[epoch] for end in ("p5", "p95")}
        for arm in arms
        for run in arm.runs
        for layer in run.values("grad_norm_mean")
        if layer
        for epoch, norm in run.series("grad_norm_mean", layer).items()
    ]
    epochs = sorted({row["epoch"] for row in rows})
    rows = [row for row in rows if math.isfinite(row["norm"] + row["p5"] + row["p95"])]
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
    times = {arm_label(arm.arm): median(arm.every("seconds")) for arm in arms}
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
    ended = [run for run in record.select(purpose="tune") if run.has_ended]
    if not ended:
        return ()
    figures = [_rates(record, ended)]
    if any(arm.is_begun for arm in tuned):
        labels = {f"{arm_label(arm.arm)}, {rate(arm.lr)}": arm.runs for arm in tuned if arm.runs}
        figures.append(
            curves(
                labels,
                "val_accuracy",
                name="val_accuracy_tuned",
                title="Validation accuracy, each at its own best rate",
                caption="After each epoch, in evaluation mode.",
                order=[f"{arm_label(arm.arm)}, {rate(arm.lr)}" for arm in tuned],
                config=record.config,
            )
        )
    table = (_table(record, arms, with_rate=True),) if arms else ()
    return (Text(_tuning_note(record, arms)), *table, Figures(figures))


def _rates(record: Record, ended: Sequence[Cell]) -> Figure:
    """Draw held-out accuracy over the learning rate."""
    finished = [run for run in ended if run.status == "finished"]
    rows = [
        {"arm": arm_label(run.factors["arm"]), "rate": run.factors["lr"], "accuracy": run.last("val_accuracy")}
        for run in sorted(finished, key=lambda run: run.factors["lr"])
    ]
    best = {arm_label(arm): best_rate(ended, arm) for arm in map(str, record.config["arms"])}
    lost = [run for run in ended if run.status == "diverged"]
    crosses = [{"arm": arm_label(run.factors["arm"]), "rate": run.factors["lr"], "accuracy": math.nan} for run in lost]
    epochs = counted(max(run.factors["epochs"] for run in ended), "epoch")
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
            "x_values": sorted({run.factors["lr"] for run in ended}),
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
