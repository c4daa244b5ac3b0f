"""Train the same network with and without batch normalization and compare.

Question: what does batch normalization change for a CNN: accuracy, its steadiness, gradient norms?

Expected (the article, on CIFAR-10): about 75 % validation accuracy by epoch 10 with it, near 60 % and unsteady
without; lower and steadier gradient norms with it. With a shallow, well-initialised network the gap may be smaller, and
each arm may prefer its own learning rate: ``--tune-lr`` looks for it. On the embedded data the article's settings leave
the network without normalization at chance; there the defaults are others, see ``docs/compare.md``.

Cost: on two cores with bfloat16, about a minute per epoch and arm on CIFAR-10; under two minutes in all on the
embedded data.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from typing import Any

from steadynorm.lab.configuration import (
    OneRateConfig,
    check_arms,
    check_experiment,
    check_rates,
    check_split,
    settings_of,
)
from steadynorm.lab.data import hold_out
from steadynorm.lab.describe.arms import Arm, Reduction, final
from steadynorm.lab.describe.claims import PAIR, absent_because, expected, left_out, with_and_without
from steadynorm.lab.describe.figures import arm_figure, chart, curves
from steadynorm.lab.describe.method import batches_label, method_of, sentences, word
from steadynorm.lab.describe.names import PLAIN, arm_labels, batch_arm, data_label, pair
from steadynorm.lab.describe.networks import has_ended, networks_as_json
from steadynorm.lab.describe.tables import accuracy_entry, arm_cell, ending, seeds_note, status_entry
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.fitting_data import check_batches
from steadynorm.lab.settings import Settings
from steadynorm.lab.training import network, train_networks
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import is_guessing, judge, too_few, unless_guessing
from steadynorm.reporting.numbers import NONE, SPACE, number, percent, percent_spread, points, rate, seconds
from steadynorm.reporting.records import Cell, Record, file_word
from steadynorm.reporting.report import Block, Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, are_apart, largest, mean, median, number_or_none, spread
from steadynorm.reporting.words import capital, counted, first_fitting, listing, seeds_label

__all__ = ["EXPERIMENT", "CompareConfig"]

HELD_OUT = 0.1  # share of the training images held out to judge learning rates
TUNING_SHARE = 4  # fraction of the epochs in a tuning run
SEED_OF_HOLD_OUT = 0  # the same images judge every arm and rate
ARTICLE: Mapping[str, Any] = {"widths": (32, 64, 128), "batch_size": 128, "lr": 0.1}
EMBEDDED: Mapping[str, Any] = {"widths": (16, 32, 64), "batch_size": 32, "lr": 0.02}
"""The rate is the best of 0.01, 0.02 and 0.03 for the network without normalization."""
ARTICLES = {
    "batch_size": 128,
    "accumulate": 1,
    "lr": 0.1,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "epochs": 20,
    "schedule": "step",
    "milestones": [10, 15],
    "label_smoothing": 0.0,
    "network": "cnn",
    "depth": 6,
    "widths": [32, 64, 128],
    "train_images": None,
    "image_size": None,
}
"""The article's settings, to which a run is compared."""
UNSAID = {"train_images": "all", "image_size": "32"}
ARTICLE_EPOCH, WITH_BATCH_NORM, WITHOUT = 10, 0.75, 0.60
"""The article's expectation: validation accuracies at this epoch."""
TOLERANCE = 0.03
"""Distance from the article's number that counts as "about": three points."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(OneRateConfig):
    """Train the article's network once per normalization and seed, and write a report.

    The first run needs no data: it trains on the embedded shapes. For the article's experiment give --data cifar10, and
    --data-dir if the data set is already on disk. --data also takes your own images.
    """

    widths: tuple[int, ...] | None = None  # type: ignore[assignment] # only until the data is known
    """Channels of each stage of the cnn; default: the article's 32 64 128, on the embedded data 16 32 64."""
    batch_size: int | None = None  # type: ignore[assignment]
    """Images that are normalized together; default: the article's 128, on the embedded data 32."""
    lr: float | None = None  # type: ignore[assignment]
    """Learning rate, the same for every arm; default: the article's 0.1, on the embedded data 0.02."""
    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare: batch_norm, none, batch_renorm, gated_batch_norm, ghost_batch_norm,
    self_tuned_batch_norm, sync_batch_norm, frozen_batch_norm, torch_batch_norm, layer_norm, group_norm, instance_norm;
    as_built, a network of your own as it is; or PACKAGE.MODULE:CLASS. Each with settings, as in batch_renorm,r_max=2,
    and a label, as in wide=batch_renorm,r_max=9."""
    accumulate: int = 1
    """Batches in a step, whose gradients are averaged: 64 batches of 2 take the steps of 128 images and normalize over
    2. Running statistics of our layers that training does not use also move once a step."""
    tune_lr: tuple[float, ...] = ()
    """Learning rates to try for each arm, in short runs that are judged on a tenth of the training images. The arms are
    then compared at --lr, and each at its own best rate."""

    def by_data(self) -> Mapping[str, Any]:
        """Return the article's settings, or those for the embedded data."""
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
    check_batches(config.batch_size or (), len(rest), together=config.accumulate, of="images beside those held out")
    epochs = max(1, config.epochs // TUNING_SHARE)
    scaled = (milestone * epochs // config.epochs for milestone in settings.milestones)
    # A milestone of 0 would lower the rate before the first step, and so try another rate than requested.
    shorter = replace(settings, milestones=tuple(milestone for milestone in scaled if milestone > 0))
    networks = [
        network(arm=arm, seed=config.seeds[0], lr=rate, epochs=epochs, purpose="tune")
        for arm in config.arms
        for rate in config.tune_lr
    ]
    return train_networks(task, networks, shorter, dataset=replace(task.dataset, train=rest, validation=held))


def _check(config: CompareConfig) -> None:
    check_arms(config.arms)
    least = {"batch_size": 2, "accumulate": 1}
    check_experiment(config, ("arms", "tune_lr"), may_be_empty=("tune_lr",), least=least)
    assert config.batch_size is not None
    check_split(config.batch_size)
    check_rates("--tune-lr", config.tune_lr)


def describe(record: Record) -> Report:
    """Describe the results of a comparison."""
    shared, tuned = rated_arms(record)
    accuracy, *others, norms = _curves(record, shared)
    result = (Figures(accuracy), _table(record, shared), Text(seeds_note(record)))
    return Report(
        headline=_headline(record, shared),
        lead=_lead(record, shared),
        table=Table.of([*shared, *tuned], SHORT),
        sections=(
            Section(title="Result", blocks=result),
            expected(Text(_expected_from(record)), Claims(_claims(record, shared))),
            Section(title="Accuracy and loss", short="Curves", blocks=(Figures([*itertools.chain(*others)]),)),
            Section(
                title="Gradient norms and time",
                short="Gradients and time",
                blocks=(Figures([*norms, *_layers(record, shared), *_time(record, shared)]),),
            ),
            Section(title="Each at its own learning rate", short="Learning rates", blocks=_tuning(record, tuned)),
        ),
        method=method_of(record, METHOD, tuned=TUNED if record.config["tune_lr"] else ""),
        finished=_is_finished(record),
        findings={
            "early_epoch": _early_epoch(record),
            "pictures": {
                name: {arm.arm: arm.as_json() for arm in found}
                for name, found in (("shared", shared), ("tuned", tuned))
                if found
            },
            "runs": networks_as_json(record),
        },
    )


@dataclass(frozen=True, kw_only=True)
class RatedArm(Arm):
    """The networks of one arm at one learning rate."""

    lr: float

    @property
    def accuracies(self) -> list[dict[int, float]]:
        """Epoch -> validation accuracy, for each network with a measurement."""
        return [found for cell in self.cells if (found := cell.series("val_accuracy"))]

    @property
    def reached_epoch(self) -> int:
        """Last epoch that any network finished."""
        return max(itertools.chain(*self.accuracies), default=0)

    @property
    def best_epoch(self) -> int | None:
        """Epoch with the highest mean validation accuracy."""
        epochs = sorted({*itertools.chain(*self.accuracies)})
        found = {epoch: spread(one[epoch] for one in self.accuracies if epoch in one) for epoch in epochs}
        means = {epoch: value.mean for epoch, value in found.items() if value}
        return max(means, key=lambda epoch: means[epoch], default=None)

    @property
    def learned(self) -> Spread | None:
        """Accuracy that shows whether it learned; a diverged arm is judged by its divergence instead."""
        return None if self.is_lost else self["val_accuracy"] or self["val_accuracy_reached"]

    def middle(self, quantity: str) -> float | None:
        """Return the median over all epochs of all networks."""
        return number_or_none(median(value for cell in self.cells for value in cell.series(quantity).values()))

    def as_json(self) -> dict[str, Any]:
        """Return its numbers; those of ``values`` over the seeds, times as medians over all epochs."""
        parameters = max((cell.series("parameters").get(0, 0) for cell in self.cells), default=0)
        return {
            "arm": self.arm,
            "lr": self.lr,
            "seeds": self.seeds,
            "finished": sum(cell.status == "finished" for cell in self.cells),
            "diverged": len(self.diverged_at_step),
            "diverged_at_step": self.diverged_at_step,
            "reached_epoch": self.reached_epoch,
            "best_epoch": self.best_epoch,
            **self.spreads,
            "seconds_per_epoch": self.middle("seconds"),
            "images_per_second": self.middle("images_per_second"),
            "parameters": int(parameters) or None,
        }


def rated_arms(record: Record) -> tuple[list[RatedArm], list[RatedArm]]:
    """Return the arms at the shared rate and, once tuning is over, each at its own.

    The second holds the arms that have a best rate; where that is the shared rate, the same networks serve both. It is
    empty while any ``tune`` run still waits, because the best rates may change.
    """
    arms, tune = [str(arm) for arm in record.config["arms"]], record.select(purpose="tune")
    best = {arm: best_rate(tune, arm) for arm in arms} if all(run.has_ended for run in tune) else {}
    shared = [_at_rate(record, arm, float(record.config["lr"])) for arm in arms]
    return shared, [_at_rate(record, arm, lr) for arm, lr in best.items() if lr is not None]


def _at_rate(record: Record, arm: str, lr: float) -> RatedArm:
    """Reduce the networks of an arm at one rate to their numbers.

    Quantities over the epochs (gap, fall, gradient norms) exclude diverged networks, which have fewer epochs, if
    another one is left.
    """
    cells = sorted(record.select(purpose=None, arm=arm, lr=lr), key=lambda cell: cell.factors["seed"])
    early = _early_epoch(record)
    decay = min((int(epoch) for epoch in record.config["milestones"]), default=int(record.config["epochs"]))
    all_lost = all(cell.status == "diverged" for cell in cells)

    def steady(reduction: Reduction) -> Reduction:
        return lambda cell: reduction(cell) if all_lost or cell.status != "diverged" else math.nan

    quantities: dict[str, Reduction] = {
        "val_accuracy": final("val_accuracy"),
        "val_accuracy_early": lambda cell: cell.series("val_accuracy").get(early, math.nan),
        "val_accuracy_reached": lambda cell: [math.nan, *cell.series("val_accuracy").values()][-1],
        "train_accuracy": final("train_accuracy"),
        "val_loss": final("val_loss"),
        "largest_gap": steady(lambda cell: largest(_both(cell, operator.sub, "train_accuracy", "val_accuracy"))),
        "largest_fall": steady(lambda cell: largest_fall(cell, until=decay)),
        "grad_norm": steady(lambda cell: mean(cell.series("grad_norm_mean").values())),
        "grad_norm_ratio": steady(lambda cell: median(_both(cell, _ratio, "grad_norm_p95", "grad_norm_p5"))),
    }
    return RatedArm.of(arm, cells, quantities, lr=lr)


def _both(run: Cell, make: Callable[[float, float], float], first: str, second: str) -> Iterator[float]:
    """Combine two quantities for each epoch."""
    return map(make, run.series(first).values(), run.series(second).values())


def _ratio(high: float, low: float) -> float:
    return high / low if low > 0 else math.nan


def best_rate(runs: Iterable[Cell], arm: str) -> float | None:
    """Choose the learning rate of an arm from its ``tune`` runs.

    It is the one with the highest held-out accuracy after the last epoch; of equals, the smallest. A run that diverged,
    has not finished, or ended with an accuracy of NaN is no candidate.

    Args:
        runs: any runs; other arms and other purposes are skipped.
        arm: registered name of the normalization.

    Returns:
        the rate before any decay, or None if no run can be used.
    """
    candidates = [
        (-run.last("val_accuracy"), run.factors["lr"])
        for run in runs
        if run.factors.get("purpose") == "tune" and run.factors["arm"] == arm and run.status == "finished"
    ]
    return min((pair for pair in candidates if math.isfinite(pair[0])), default=(0.0, None))[1]


def largest_fall(run: Cell, *, until: int) -> float:
    """Return the largest fall of validation accuracy from one epoch to the next, up to epoch ``until``.

    Returns:
        a share >= 0; NaN if fewer than two epochs can be compared.
    """
    values = [value for epoch, value in run.series("val_accuracy").items() if epoch <= until]
    worst = largest(before - after for before, after in itertools.pairwise(values))
    return max(0.0, worst) if math.isfinite(worst) else worst


def _early_epoch(record: Record) -> int:
    """Return the epoch at which the arms are compared early: the article's 10, or the middle if shorter."""
    planned = int(record.config["epochs"])
    return ARTICLE_EPOCH if planned >= ARTICLE_EPOCH else max(1, (planned + 1) // 2)


def _is_finished(record: Record) -> bool:
    """Whether every planned run has finished or diverged."""
    planned = len(record.config["seeds"])
    return has_ended(record) and all(arm.seeds == planned for arms in rated_arms(record) for arm in arms)


SHORT: Mapping[str, Callable[[RatedArm], str]] = {
    "arm": lambda arm: file_word(arm.arm),
    "learning rate": lambda arm: rate(arm.lr),
    "seeds": lambda arm: str(arm.seeds),
    "validation accuracy": lambda arm: (
        ending(arm["val_accuracy"], arm.lost)
        if arm["val_accuracy"] or arm.lost
        else f"epoch {arm.reached_epoch}, not finished"
    ),
    "gradient norm": lambda arm: number(arm.mean("grad_norm")),
    "s/epoch": lambda arm: seconds(arm.middle("seconds")),
}


def _table(record: Record, arms: Sequence[RatedArm], *, with_rate: bool = False) -> Table:
    """Lay out a row for each arm, with its learning rate if these differ."""
    columns: dict[str, Callable[[RatedArm], Entry | str]] = {
        "Normalization": lambda arm: arm_cell(record, arm.arm),
        "Learning rate": lambda arm: rate(arm.lr),
        "Final validation accuracy": _accuracy,
        f"At epoch {_early_epoch(record)}": _early,
        "Training ahead, at most": _gap,
        "Gradient norm": lambda arm: Entry(
            text=number(arm.mean("grad_norm")),
            note=f"p95/p5 {number(arm.mean('grad_norm_ratio'))}" if arm["grad_norm_ratio"] else "",
        ),
        "Time per epoch": lambda arm: Entry(
            text=seconds(arm.middle("seconds")),
            note=f"{speed:,.0f}{SPACE}images/s" if (speed := arm.middle("images_per_second")) else "",
        ),
        "Status": lambda arm: status_entry(
            arm, f"epoch {arm.reached_epoch} of {record.config['epochs']}" if arm.reached_epoch else ""
        ),
    }
    if not with_rate:
        del columns["Learning rate"]
    return Table.of(arms, columns)


def _early(arm: RatedArm) -> Entry:
    highest = f"highest at epoch {arm.best_epoch}" if arm["val_accuracy"] else ""
    return Entry(text=percent_spread(arm["val_accuracy_early"]), note=highest)


def _gap(arm: RatedArm) -> str:
    gap = arm["largest_gap"]
    return NONE if gap is None else points(gap.mean) if gap.mean > 0 else "never ahead"


def _accuracy(arm: RatedArm) -> Entry:
    reached = arm["val_accuracy_reached"]
    if arm["val_accuracy"] or not reached:
        return accuracy_entry(arm["val_accuracy"], "strong")
    until = "when it diverged after" if arm.is_lost else "so far, at"
    return Entry(text=NONE, note=f"{percent(reached.mean)} {until} epoch {arm.reached_epoch}")


IN_EVALUATION = "After each epoch, in evaluation mode."
CURVES = (
    ("val_accuracy", "Validation accuracy", IN_EVALUATION),
    ("train_accuracy", "Training accuracy", "Measured during the epoch."),
    ("val_loss", "Validation loss", "Mean cross-entropy in nats."),
    ("train_loss", "Training loss", "Mean cross-entropy in nats, measured during the epoch."),
)


def _curves(record: Record, arms: Sequence[RatedArm]) -> list[list[Figure]]:
    """Draw each of the quantities over the epochs, the norm of the gradient last."""
    draw = partial(curves, record, {arm.arm: arm.cells for arm in arms if arm.cells})
    norms = draw(
        "grad_norm_mean",
        name="grad_norm",
        title="Gradient norm of all parameters",
        caption="Of the l2 norm, at each step.",
        steps=("grad_norm_p5", "grad_norm_p95"),
    )
    return [*(draw(quantity, title=title, caption=caption) for quantity, title, caption in CURVES), norms]


def _layers(record: Record, arms: Sequence[RatedArm]) -> Iterator[Figure]:
    """Draw the gradient norm of each weight at the first and the last epoch; nothing if no norms were recorded."""
    rows: list[dict[str, Any]] = [
        {"arm": arm.arm, "epoch": epoch, "layer": layer, "norm": norm}
        | {end: cell.series(f"grad_norm_{end}", layer)[epoch] for end in ("p5", "p95")}
        for arm in arms
        for cell in arm.cells
        for layer in cell.values("grad_norm_mean")
        if layer
        for epoch, norm in cell.series("grad_norm_mean", layer).items()
    ]
    epochs = sorted({row["epoch"] for row in rows})
    for name, epoch in zip(("layers_first", "layers_last"), dict.fromkeys(epochs[:1] + epochs[-1:]), strict=False):
        yield from arm_figure(
            record,
            "dot_ranges",
            [row for row in rows if row["epoch"] == epoch and math.isfinite(row["norm"] + row["p5"] + row["p95"])],
            name=name,
            title=f"Gradient norm of each weight, epoch {epoch}",
            caption="First layer on top. Dot: mean over the epoch's steps. Line: 5th to 95th percentile of the steps.",
            rows="layer",
            x="norm",
            ends=("p5", "p95"),
            x_title="l2 norm",
        )


def _time(record: Record, arms: Sequence[RatedArm]) -> list[Figure]:
    times = {arm.label: arm.middle("seconds") for arm in arms}
    rows = [{"arm": arm, "seconds": value, "text": seconds(value)} for arm, value in times.items() if value is not None]
    axes: dict[str, Any] = {"rows": "arm", "x": "seconds", "text": "text", "order": arm_labels(record)}
    caption = "Median over all epochs, validation included."
    return chart("bars", rows, name="time", title="Time for one epoch", caption=caption, **axes)


def _tuning(record: Record, tuned: Sequence[RatedArm]) -> tuple[Block, ...]:
    """Show how each arm's own rate was chosen, and the arms at these rates; nothing before a ``tune`` run has ended."""
    ended = [run for run in record.select(purpose="tune") if run.has_ended]
    if not ended:
        return ()
    how = (
        "One rate for all may suit one arm better than another. Rates "
        f"{listing([rate(float(lr)) for lr in record.config['tune_lr']])} were tried with short runs judged on "
        "training images kept aside; then each arm was trained at its best one."
    )
    if not tuned:
        return (Text(f"{how} The choice is not complete yet."), Figures(_rates(record, ended)))
    labels = {f"{arm.label}, {rate(arm.lr)}": arm.cells for arm in tuned}
    tuned_curves = curves(
        record,
        {label: cells for label, cells in labels.items() if cells},
        "val_accuracy",
        name="val_accuracy_tuned",
        title="Validation accuracy, each at its own best rate",
        caption=IN_EVALUATION,
        order=list(labels),
    )
    drawn = Figures([*_rates(record, ended), *tuned_curves])
    return (Text(how), _table(record, tuned, with_rate=True), drawn)


RATES: dict[str, Any] = {"x": "rate", "x_title": "learning rate", "x_log": True, "y": "accuracy"}
RATES |= {"percent": True, "dots": True}


def _rates(record: Record, ended: Sequence[Cell]) -> list[Figure]:
    """Draw held-out accuracy over the learning rate."""

    def row(run: Cell, accuracy: float) -> dict[str, Any]:
        return {"arm": run.factors["arm"], "rate": run.factors["lr"], "accuracy": accuracy}

    runs = sorted(ended, key=lambda run: run.factors["lr"])
    rows = [row(run, run.last("val_accuracy")) for run in runs if run.status == "finished"]
    crosses = [row(run, math.nan) for run in runs if run.status == "diverged"]
    best = {arm: best_rate(ended, arm) for arm in record.config["arms"]}
    epochs = counted(max(run.factors["epochs"] for run in ended), "epoch")
    crossed = " A cross at the foot marks a rate at which the run diverged." if crosses else ""
    return arm_figure(
        record,
        "lines",
        rows,
        name="rates",
        title="Held-out accuracy by learning rate",
        caption=f"After {epochs}, on training images kept aside. A ring marks an arm's best rate.{crossed}",
        marks={"rings": [one for one in rows if one["rate"] == best[one["arm"]]], "crosses": crosses},
        **RATES,
        x_values=sorted({run.factors["lr"] for run in runs}),
    )


def _claims(record: Record, arms: Sequence[RatedArm]) -> list[Claim]:
    """Judge the article's expectations at its learning rate.

    On CIFAR-10 this judges the numbers themselves; on other data only their direction.
    """
    both, epoch = pair({arm.arm: arm for arm in arms}), _early_epoch(record)
    batch, plain = both
    ahead = f"Batch norm is ahead at epoch {epoch}."
    steadier = "95th over 5th percentile within an epoch"
    judged = [
        *(
            (
                _near(batch, PAIR[0], "Batch norm is at about", WITH_BATCH_NORM, epoch, more_is_fine=True),
                _near(plain, PAIR[1], "Without normalization accuracy is near", WITHOUT, epoch, more_is_fine=False),
            )
            if record.config["data"] == "cifar10"
            else (with_and_without(ahead, both, "val_accuracy_early", "validation accuracy", percent, higher=True),)
        ),
        _steadier(batch, plain, in_steps=record.config.get("schedule", "step") == "step"),
        _over_epochs("Gradient norms are lower with batch norm.", batch, plain, "grad_norm", "mean over the epochs"),
        _over_epochs("Gradient norms are steadier with batch norm.", batch, plain, "grad_norm_ratio", steadier),
    ]
    networks = {arm.label: arm.learned for arm in both if arm}
    return [unless_guessing(item, chance_of(record), networks) for item in judged]


def _near(arm: RatedArm | None, which: str, start: str, target: float, epoch: int, *, more_is_fine: bool) -> Claim:
    claim = f"{start} {percent(target, digits=0)} by epoch {ARTICLE_EPOCH}."
    reached = arm["val_accuracy_early"] if arm and epoch == ARTICLE_EPOCH else None
    if reached is None:
        short = f"The networks have {counted(arm.reached_epoch, 'epoch')}." if arm and not arm.lost else ""
        return judge(claim, False if arm and arm.is_lost else None, short or absent_because(arm, which))
    excess = reached.mean - target
    where = f"{points(excess)} {'above' if excess > 0 else 'below'} the article's figure"
    seeds = (
        f" (mean of {reached.n} seeds, from {percent(reached.low)} to {percent(reached.high)})" if reached.n > 1 else ""
    )
    met = excess >= -TOLERANCE and (more_is_fine or excess <= TOLERANCE)
    return judge(claim, met, f"{percent(reached.mean)} at epoch {epoch}{seeds}, {where}.")


def _steadier(batch: RatedArm | None, plain: RatedArm | None, *, in_steps: bool) -> Claim:
    """Judge whose accuracy falls less; if only one arm diverged, the other one wins."""
    claim = "Validation accuracy is less steady without normalization."
    lost = [arm for arm in (batch, plain) if arm and arm.is_lost]
    if batch and plain and len(lost) == 1:
        return judge(claim, lost == [plain], f"{capital(lost[0].label)}: {lost[0].lost}.")
    what = "worst fall from one epoch to the next" + (" before the rate is first lowered" if in_steps else "")
    return _over_epochs(claim, batch, plain, "largest_fall", what, points)


def _over_epochs(
    claim: str,
    batch: RatedArm | None,
    plain: RatedArm | None,
    quantity: str,
    what: str,
    shown: Callable[[float], str] = number,
) -> Claim:
    """Compare the two arms, if both have the same number of epochs."""
    if batch and plain and batch.reached_epoch != plain.reached_epoch:
        reached = f"{counted(batch.reached_epoch, 'epoch')} with batch norm and {plain.reached_epoch} without"
        return judge(claim, None, f"{reached} cannot be compared.")
    return with_and_without(claim, (batch, plain), quantity, what, shown)


def _headline(record: Record, arms: Sequence[RatedArm]) -> str:
    """Describe the results of the arms at the shared rate."""
    measured = sorted(
        (arm for arm in arms if arm["val_accuracy"]), key=methodcaller("mean", "val_accuracy"), reverse=True
    )
    failed = [arm.label for arm in arms if arm.is_lost]
    if not measured:
        return _nothing_to_compare(record, arms, failed)
    best, *others = measured
    pair = {batch_arm([arm.arm for arm in measured]), PLAIN}
    if best.arm in pair:  # the other of the article's two comes next
        others.sort(key=lambda arm: arm.arm not in pair)
    chance, score = chance_of(record), percent(best.mean("val_accuracy"))
    reached = f"{capital(best.label)} reaches {score}"
    claims = (f"{reached} on {data_label(record)}", reached)  # the second where names are long
    if is_guessing(best["val_accuracy"], chance):
        said = f"No network is surely better than guessing; the best, {best.label}, reaches {score}"
        return too_few(chance) or said
    if failed:
        lost = f"{listing(failed)} {'diverges' if len(failed) == 1 else 'diverge'}"
        return first_fitting(*(f"{claim}; {lost}" for claim in claims))
    if not others:
        return first_fitting(*claims)
    other, its_score = others[0], percent(others[0].mean("val_accuracy"))
    if is_guessing(other["val_accuracy"], chance):
        return first_fitting(*(f"{claim}; {other.label} is not surely above chance: {its_score}" for claim in claims))
    if not are_apart(best["val_accuracy"], other["val_accuracy"]):
        if best.seeds == other.seeds == 1:
            return f"{capital(best.label)} and {other.label} both reach {score}"
        return f"{capital(best.label)} and {other.label} end within their seeds' range: {score} and {its_score}"
    apart = points(best.mean("val_accuracy") - other.mean("val_accuracy"))
    return first_fitting(*(f"{claim}, {other.label} {its_score}: {apart} apart" for claim in claims))


def _nothing_to_compare(record: Record, arms: Sequence[RatedArm], failed: Sequence[str]) -> str:
    if arms and len(failed) == len(arms):
        return f"Every network diverged at learning rate {rate(record.config['lr'])}"
    if _is_finished(record):
        return "No network ended with a validation accuracy"
    reached = max((arm.reached_epoch for arm in arms), default=0)
    return f"No network has finished yet: epoch {reached} of {record.config['epochs']}"


def _expected_from(record: Record) -> str:
    """Name the source of the expectations, and how far this run can be compared with them."""
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
    """Describe how the configuration differs from the article's."""
    return [
        f"{key.replace('_', ' ')} {_named(key, record.config[key])} instead of {_named(key, value)}"
        for key, value in ARTICLES.items()
        if record.config.get(key, value) != value
    ]


def _named(key: str, value: object) -> str:
    return UNSAID[key] if value is None else word(value) or "none"


LEAD = """
The same network ({network}) in {variants} variants that differ in normalization alone, trained for {epochs} on {data}
with learning rate {lr} and {batches}; {trained}.
"""
METHOD = """
The gradient norm is the l2 norm over all parameters, at every step, before the step is taken. Its steadiness is the
95th over the 5th percentile of the steps of an epoch, then the median over the epochs.

A run whose loss stops being finite is stopped and counted as diverged; means of final accuracy are over the runs that
finished.

{tuned}
"""
TUNED = "Learning rates were chosen on training images kept aside, never on the validation images."


def _lead(record: Record, arms: Sequence[RatedArm]) -> str:
    """Name the basis of the headline, and whether it is complete."""
    trained = seeds_label(max((arm.seeds for arm in arms), default=0))
    batches = batches_label(record)
    return sentences(record, LEAD, variants=len(arms), batches=batches, trained=trained) + left_out(arms)


EXPERIMENT = Experiment(name="compare", config=CompareConfig, quick=QUICK, check=_check, work=_work, describe=describe)
