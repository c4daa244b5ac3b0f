"""Train the small sigmoid network of the first figure on batch normalization, with it and without.

Question: is a network of sigmoids right more often, and sooner, when its hidden layers are normalized, and is what
arrives at a sigmoid then distributed more steadily while the network trains?

Expected (Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.1 and figure 1): higher test accuracy; in the plain
network the distribution's mean and variance change much, in the normalized one they hardly do.

The paper's: 28 x 28 binary images, three hidden layers of 100 sigmoids, small Gaussian initial weights, 50,000 steps
on 60 images, normalization between each hidden layer's linear map and its sigmoids. It gives neither the learning
rate nor how small the weights are; see ``docs/classic.md`` for how both were chosen here.

What arrives at a sigmoid is measured over the test images in training mode, as in the paper: in batches of the
training's size, each normalized by its own moments. There its mean and standard deviation are the normalization's bias
and weight by construction. In evaluation mode running statistics have to keep up with the weights, from a beginning
(0 and 1) that is no network's; what shifts there is kept beside it.

A cell (arm, seed) holds

================== ============ ============================================================================
quantity           subject      meaning
================== ============ ============================================================================
test_accuracy      (none)       share in [0, 1] of the test images, in evaluation mode
test_loss          (none)       mean cross-entropy in nats, likewise
train_loss         (none)       the same over the steps since the last measurement, in training mode
p15, p50, p85      unit 0 to 7  percentiles of the input to that sigmoid of the last hidden layer, in training mode
drift, path,       every unit   how far they moved in all of training, see :func:`steadynorm.lab.sigmoids.shifts`
width_ratio
eval_drift, ...    every unit   the same in evaluation mode
diverged           (none)       1 at the last measurement, where the training loss is not finite; no shifts then
================== ============ ============================================================================

Cost: one to four minutes for each arm and seed on one core, as busy as it is; --quick seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.cells import Job, Measure, measure_cells
from steadynorm.lab.configuration import ExperimentConfig, check_at_least, check_experiment, check_lists, check_rates
from steadynorm.lab.data import Images
from steadynorm.lab.data.images import random_stream
from steadynorm.lab.describe import (
    accuracy_entry,
    all_measured,
    arm_cell,
    arm_label,
    arm_labels,
    batch_arm,
    data_label,
    expected,
    few_arms,
    measurements,
    pair,
    plain_arm,
    spread_entry,
)
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.sigmoids import PERCENTILES, build_network, check_arms, inputs_in_training, percentiles, shifts
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import compare, is_guessing, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import NONE, number, percent, percent_spread, rate, seconds
from steadynorm.reporting.records import Measurement, Record
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, are_apart, spread
from steadynorm.reporting.words import listing, seeds_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXPERIMENT", "ClassicConfig", "measured_steps"]

SHOWN_UNITS = 8  # have their percentiles kept at every measurement
PARTS = 100  # of training, with a measurement after each
INK = 128  # pixels from here on are 1, others 0


@dataclass(frozen=True, kw_only=True)
class ClassicConfig(ExperimentConfig):
    """Train the sigmoid network of batch norm's first figure with and without it, and watch what reaches a sigmoid.

    It needs no data: it trains on the digits that come with scikit-learn. For the paper's say
    --data mnist --data-dir DIR.
    """

    data: Literal["digits", "mnist"] = "digits"  # type: ignore[assignment] # none of the other experiments' data
    """digits: 1,797 that come with scikit-learn, enlarged; mnist: from --data-dir."""
    data_dir: Path | None = None
    """Where the four files of MNIST lie: train-images-idx3-ubyte and so on, with or without .gz."""
    precision: Literal["fp32"] = "fp32"
    """The network is too small to gain from less."""
    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare: batch_norm, none, self_tuned_batch_norm, torch_batch_norm, layer_norm."""
    widths: tuple[int, ...] = (100, 100, 100)
    """Sigmoids of each hidden layer."""
    steps: int = 50_000
    """Steps to train."""
    batch_size: int = 60
    """Images in a step."""
    lr: float = 1.0
    """Learning rate of SGD without momentum, the same for every arm."""
    init_std: float = 0.1
    """Standard deviation of the initial weights."""


QUICK: dict[str, Any] = {"steps": 2_000}


def measured_steps(steps: int) -> list[int]:
    """Choose when to measure: before training, after each hundredth of it, and within the first after 1, 2, 4, ..."""
    even = {round(steps * part / PARTS) for part in range(PARTS + 1)}
    early = {2**power for power in range(steps.bit_length()) if 2**power < steps / PARTS}
    return sorted(even | early)


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Binary images, float32 of shape (N, pixels), and their labels, int64 of shape (N,)."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> _Split:
        """Give the images of these numbers."""
        return _Split(x=self.x[chosen], labels=self.labels[chosen])


def _binary(images: Images, device: torch.device) -> _Split:
    x = (images.pixels >= INK).flatten(1).float()
    return _Split(x=x.to(device), labels=images.labels.to(device))


def _work(task: Task[ClassicConfig]) -> None:
    config = task.config
    grid = [{"arm": arm, "seed": seed} for seed in config.seeds for arm in config.arms]
    measure_cells(grid, _measure, task)


def _measure(task: Task[ClassicConfig]) -> Measure:
    """Make what trains and watches the network of a cell."""
    config, device = task.config, torch.device(task.record.resolved["device"])
    train, test = (_binary(images, device) for images in (task.dataset.train, task.dataset.validation))

    def measure(job: Job) -> Iterator[Measurement]:
        seed = job.factors["seed"]
        network = build_network(
            job.factors["arm"],
            inputs=train.x.shape[1],
            widths=config.widths,
            classes=len(task.dataset.classes),
            std=config.init_std,
            seed=seed,
        ).to(device)
        batches = (train.take(chosen) for chosen in _batches(len(train), config.batch_size, seed))
        return _watch(network, batches, test, config, job.advance)

    return measure


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Give the images of each step, without end: whole batches of a new order in each pass."""
    size = min(size, count)
    for epoch in itertools.count(1):
        order = torch.from_numpy(random_stream(seed, epoch).permutation(count))
        yield from order[: count // size * size].view(-1, size)


def _watch(
    network: nn.Sequential,
    batches: Iterator[_Split],
    test: _Split,
    config: ClassicConfig,
    advance: Callable[[float, str], None],
) -> Iterator[Measurement]:
    """Train a network, and stop to look at it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr)
    history: list[Tensor] = []
    done = 0
    for step in measured_steps(config.steps):
        if step > 0:
            loss = _train(network, optimizer, itertools.islice(batches, step - done))
            yield Measurement(step=step, quantity="train_loss", value=loss)
            if not math.isfinite(loss):
                yield Measurement(step=step, quantity="diverged", value=1.0)
                return
        network.eval()
        history.append(_arriving(network, test, config.batch_size))
        yield from _judge(network, test, step)
        yield from _shown(history[-1][0], step)
        done = step
        advance(step / config.steps, "")
    for place, mode in enumerate(("", "eval_")):
        for quantity, values in shifts(torch.stack(history)[:, place]).items():
            for unit, value in enumerate(values.tolist()):
                yield Measurement(subject=f"unit {unit}", step=config.steps, quantity=mode + quantity, value=value)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[_Split]) -> float:
    """Take a step on each batch; return their mean loss."""
    network.train()
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch.x), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def _arriving(network: nn.Sequential, test: _Split, batch_size: int) -> Tensor:
    """Give the percentiles of what reaches the last sigmoids, in training and in evaluation: shape (2, 3, units)."""
    training = inputs_in_training(network, test.x, batch_size=batch_size)
    return torch.stack([percentiles(training), percentiles(network[:-2](test.x))]).cpu()


@torch.no_grad()
def _judge(network: nn.Sequential, test: _Split, step: int) -> list[Measurement]:
    logits = network(test.x)
    accuracy = (logits.argmax(1) == test.labels).double().mean().item()
    loss = F.cross_entropy(logits, test.labels).item()
    return [
        Measurement(step=step, quantity="test_accuracy", value=accuracy),
        Measurement(step=step, quantity="test_loss", value=loss),
    ]


def _shown(found: Tensor, step: int) -> Iterator[Measurement]:
    for unit, values in enumerate(found.T[:SHOWN_UNITS].tolist()):
        for name, value in zip(PERCENTILES, values, strict=True):
            yield Measurement(subject=f"unit {unit}", step=step, quantity=name, value=value)


def _check(config: ClassicConfig) -> None:
    if (config.data == "mnist") != (config.data_dir is not None):
        raise UserError("--data-dir: belongs to --data mnist, which needs it. Give both or neither.")
    check_arms(config.arms)
    check_lists(config, ("arms",))
    check_experiment(config)
    check_at_least(config, (("steps", 1), ("batch_size", 2)))
    check_rates("--lr", (config.lr,))
    if config.train_images is not None:
        check_at_least(config, (("train_images", 2),))
    if not config.widths or min(config.widths) < 1:
        raise UserError(f"--widths: must be positive numbers, got {' '.join(map(str, config.widths)) or 'none'}.")
    if not 0 < config.init_std < math.inf:
        raise UserError(f"--init-std: must be a positive number, got {config.init_std}.")


def describe(record: Record) -> Report:
    """Say what the sigmoid network showed."""
    rows = measurements(record)
    arms = [summarise(record, rows, str(arm)) for arm in record.config["arms"]]
    return Report(
        headline=_headline(record, arms),
        lead=_lead(record, arms),
        table=Table.of(arms, SHORT),
        sections=(
            Section(
                title="Result", blocks=(Figures([*_curves(record, rows)]), _table(record, arms), Text(_reading(arms)))
            ),
            expected(
                Text(FIRST_FIGURE),
                Claims(_claims(record, arms)),
            ),
            Section(
                title="What reaches a sigmoid", blocks=(Figures([*_percentiles(record, rows), *_shifts(record, rows)]),)
            ),
        ),
        method=_method(record),
        finished=all_measured(record),
        findings=_findings(rows, arms),
    )


SHOWN = "unit 0"
"""The sigmoid whose input the figures show: the first, not a chosen one."""
SHIFTS = ("drift", "path", "width_ratio", "eval_drift", "eval_path", "eval_width_ratio")


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm; every spread is over its measured seeds, without those that diverged."""

    arm: str
    seeds: int
    """Planned."""
    measured: int
    """Measured to the end or until the loss was not finite."""
    diverged_at_step: tuple[int, ...]
    """Of the seeds that did: the measurement that found it."""
    test_accuracy: Spread | None
    """After the last step."""
    train_loss: Spread | None
    """Mean over the last hundredth of the steps."""
    steps_to_common: Spread | None
    """First measured step with the common accuracy: the lower of the two that batch norm and no normalization end with
    in the same seed."""
    common_missed: int
    """Seeds that never have it."""
    drift: Spread | None
    """Median over the last hidden layer's sigmoids of how far the median of their input was from its final place."""
    path: Spread | None
    """Likewise, of all that it moved from measurement to measurement."""
    width_ratio: Spread | None
    """Likewise, of the largest over the smallest distance from the 15th to the 85th percentile."""
    eval_drift: Spread | None
    """The three in evaluation mode."""
    eval_path: Spread | None
    eval_width_ratio: Spread | None
    seconds: Spread | None
    """For one seed, measurements included."""


def summarise(record: Record, rows: pd.DataFrame, arm: str) -> ArmSummary:
    """Reduce the measurements of an arm to its numbers."""
    own, whole = rows[rows["arm"] == arm], _whole(rows, arm)
    accuracy, common = whole[whole["quantity"] == "test_accuracy"], _common_accuracy(record, rows)
    reached = accuracy[accuracy["value"] >= accuracy["seed"].map(common)].groupby("seed")["step"].min()
    ends = whole.groupby(["quantity", "seed"])["value"].last()
    # A sigmoid whose input no longer has a width counts as infinitely far.
    middles = whole.fillna({"value": math.inf}).groupby(["quantity", "seed"])["value"].median()
    times = {cell.factors["seed"]: cell.seconds for cell in record.select(arm=arm)}
    seeds = whole["seed"].unique()
    return ArmSummary(
        arm=arm,
        seeds=len(record.config["seeds"]),
        measured=own["seed"].nunique(),
        diverged_at_step=tuple(own[own["quantity"] == "diverged"]["step"]),
        test_accuracy=spread(ends.get("test_accuracy", ())),
        train_loss=spread(ends.get("train_loss", ())),
        steps_to_common=spread(reached.tolist()),
        common_missed=sum(seed in common and seed not in reached for seed in seeds),
        seconds=spread(times[seed] or 0 for seed in seeds),
        **{name: spread(middles.get(name, ())) for name in SHIFTS},
    )


def _whole(rows: pd.DataFrame, arm: str | None) -> pd.DataFrame:
    """Give the rows of an arm's seeds that did not diverge."""
    own = rows[rows["arm"] == arm]
    return own[~own["seed"].isin(own[own["quantity"] == "diverged"]["seed"])]


def _common_accuracy(record: Record, rows: pd.DataFrame) -> dict[int, float]:
    """Give the lower of the two that batch norm and no normalization end with, for each seed that has both."""
    arms = [str(arm) for arm in record.config["arms"]]
    found: dict[int, list[float]] = {}
    for whole in (_whole(rows, batch_arm(arms)), _whole(rows, plain_arm(arms))):
        for seed, accuracy in whole[whole["quantity"] == "test_accuracy"].groupby("seed")["value"].last().items():
            found.setdefault(seed, []).append(accuracy)
    return {seed: min(ends) for seed, ends in found.items() if len(ends) == 2}


def _findings(rows: pd.DataFrame, arms: Sequence[ArmSummary]) -> dict[str, Any]:
    """Give the summaries, and what the figures show."""
    of_arms = {arm.arm: rows[rows["arm"] == arm.arm] for arm in arms}
    accuracies = {arm: own[own["quantity"] == "test_accuracy"].groupby("step") for arm, own in of_arms.items()}
    shown = {arm: _shown_unit(own) for arm, own in of_arms.items() if len(own)}
    return {
        "arms": {arm.arm: arm for arm in arms},
        "sigmoids": {
            arm: {name: spread(own[own["quantity"] == name]["value"]) for name in SHIFTS}
            for arm, own in of_arms.items()
        },
        "test_accuracy": {
            arm: {step: spread(found["value"]) for step, found in steps} for arm, steps in accuracies.items()
        },
        "shown_unit": {
            f"{arm}-seed{unit['seed'].iloc[0]}": unit.set_index("step")[list(PERCENTILES)].to_dict()
            for arm, unit in shown.items()
        },
    }


def _shown_unit(of_arm: pd.DataFrame) -> pd.DataFrame:
    """Give the percentiles of the shown sigmoid's input in the first measured seed, a row for each step."""
    first = of_arm[of_arm["seed"] == of_arm["seed"].iloc[0]]
    shown = first[(first["subject"] == SHOWN) & first["quantity"].isin(PERCENTILES)]
    return shown.pivot(index=["arm", "seed", "step"], columns="quantity", values="value").reset_index()


# What the tables show.

SHORT: Mapping[str, Callable[[ArmSummary], str]] = {
    "arm": lambda arm: arm.arm,
    "seeds": lambda arm: str(arm.seeds),
    "test accuracy": lambda arm: _short_accuracy(arm),
    "steps to common accuracy": lambda arm: _common(arm).text,
    "drift": lambda arm: spread_entry(arm.drift).text,
    "change of width": lambda arm: spread_entry(arm.width_ratio).text,
    "s": lambda arm: seconds(arm.seconds.mean if arm.seconds else None),
}


def _table(record: Record, arms: Sequence[ArmSummary]) -> Table:
    return Table.of(
        arms,
        {
            "Normalization": lambda arm: arm_cell(record, arm.arm),
            "Test accuracy": lambda arm: accuracy_entry(arm.test_accuracy, "strong"),
            "Steps to common accuracy": _common,
            "Training loss": lambda arm: spread_entry(arm.train_loss),
            "Drift": lambda arm: spread_entry(arm.drift),
            "Path": lambda arm: spread_entry(arm.path),
            "Change of width": lambda arm: spread_entry(arm.width_ratio),
            "Time": lambda arm: seconds(arm.seconds.mean if arm.seconds else None),
            "Status": _status,
        },
    )


def _common(arm: ArmSummary) -> Entry:
    missed = f"never in {arm.common_missed} of {arm.seeds} seeds" if arm.common_missed else ""
    if arm.steps_to_common is None:
        return Entry(text="never" if missed else NONE, note=missed)
    found = spread_entry(arm.steps_to_common, _steps)
    return Entry(text=found.text, note=missed or found.note)


def _short_accuracy(arm: ArmSummary) -> str:
    accuracy, status = percent_spread(arm.test_accuracy), _status(arm).text
    if not arm.diverged_at_step:
        return accuracy
    return f"{accuracy}; {status}" if arm.test_accuracy else status


def _status(arm: ArmSummary) -> Entry:
    measured = f"{arm.measured} of {arm.seeds} seeds"
    if arm.diverged_at_step:
        when = listing([_steps(step) for step in arm.diverged_at_step])
        still_open = f"{measured} measured" if arm.measured < arm.seeds else ""
        return Entry(text=f"diverged at step {when}", tone="bad", note=still_open)
    if arm.measured == arm.seeds:
        return Entry(text="finished")
    return Entry(text=measured if arm.measured else "waiting", tone="muted")


def _steps(value: float) -> str:
    return f"{value:,.0f}"


# The figures.


def _curves(record: Record, rows: pd.DataFrame) -> Iterator[Figure]:
    """Draw accuracy and loss over the steps; nothing where they are not measured."""
    several = " Line: mean of the seeds. Band: their lowest to highest value." * (len(record.config["seeds"]) > 1)
    of_loss = "Mean cross-entropy in nats over the steps since the last point, in training mode."
    for name, title, caption in (
        ("test_accuracy", "Test accuracy", "In evaluation mode, from the first step on."),
        ("train_loss", "Training loss", of_loss),
    ):
        shown = rows[(rows["quantity"] == name) & (rows["value"].abs() < math.inf)]
        options = {"y": "value", "percent": name == "test_accuracy"}
        yield from _over_steps(record, shown, options, (name, title, caption + several))


def _percentiles(record: Record, rows: pd.DataFrame) -> Iterator[Figure]:
    """Draw what reaches one sigmoid, in each arm's first measured seed."""
    import pandas as pd

    first = pd.concat([rows[:0], *(_shown_unit(own) for _, own in rows.groupby("arm"))])
    seeds = listing([str(seed) for seed in sorted(set(first["seed"]))])
    caption = (
        "First sigmoid of the last hidden layer, over the test images in training mode. Line: median. Band: 15th to "
        f"85th percentile. Seed {seeds}."
    )
    options = {"y": "p50", "band": ("p15", "p85")}
    yield from _over_steps(record, first, options, ("percentiles", "Input of one sigmoid", caption))


def _over_steps(
    record: Record, rows: pd.DataFrame, options: dict[str, Any], texts: tuple[str, str, str]
) -> Iterator[Figure]:
    """Draw a column over the steps; nothing where there is none. ``texts``: name, title and caption."""
    shown, steps, (name, title, caption) = rows[rows["step"] > 0], int(record.config["steps"]), texts
    axes = {"x": "step", "hue": "arm", "order": arm_labels(record), "x_log": steps > 10, "x_domain": (1, max(2, steps))}
    if len(shown):
        data = _labeled(shown)
        yield Figure(name=name, title=title, caption=caption, kind="lines", data=data, options=axes | options)


def _labeled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(arm=[arm_label(arm) for arm in rows["arm"]])


def _shifts(record: Record, rows: pd.DataFrame) -> Iterator[Figure]:
    """Draw a point for every sigmoid that has drift and change of width, which takes an input that varies."""
    both = rows[rows["quantity"].isin(["drift", "width_ratio"]) & (rows["value"].abs() < math.inf)]
    found = both.pivot(index=["arm", "seed", "subject"], columns="quantity", values="value").dropna().reset_index()
    if len(found):
        yield Figure(
            name="shifts",
            title="How far each sigmoid's input shifts",
            caption="A point for each sigmoid of the last hidden layer, all seeds; lower left is steadier.",
            kind="points",
            data=_labeled(found),
            options={
                "x": "drift",
                "y": "width_ratio",
                "hue": "arm",
                "order": arm_labels(record),
                "x_title": "farthest that the median was from its end, in final widths",
                "y_title": "largest over smallest width",
            },
        )


# What is claimed.

FIRST_FIGURE = (
    "Ioffe & Szegedy 2015 (arXiv 1502.03167, figure 1), on MNIST: higher test accuracy with batch norm, and inputs of "
    "sigmoids whose distribution is much steadier. An expectation is met where the means differ as it says and the "
    "ranges of the seeds do not overlap."
)
EXPECTED: Sequence[tuple[str, str, str, Callable[[float], str]]] = (
    ("Batch norm ends with the higher test accuracy.", "test_accuracy", "after the last step", percent),
    ("Batch norm is sooner at the accuracy that both reach.", "steps_to_common", "first measured step there", _steps),
    ("Inputs of sigmoids keep their place better with batch norm.", "drift", "the middle one's drift", number),
    (
        "Inputs of sigmoids keep their width better with batch norm.",
        "width_ratio",
        "the middle one's change of width",
        number,
    ),
)
"""Claim, quantity, what it is, and how it is written; of the first batch norm is to have more, of the others less."""


def _claims(record: Record, arms: Sequence[ArmSummary]) -> list[Claim]:
    """Judge each, where both arms have learned something."""
    batch, plain = pair({arm.arm: arm for arm in arms})
    networks = {arm_label(arm.arm): arm.test_accuracy for arm in (batch, plain) if arm}
    found = []
    for claim, quantity, what, shown in EXPECTED:
        first, second = (getattr(arm, quantity) if arm else None for arm in (batch, plain))
        judged = compare(
            claim,
            first,
            second,
            higher=quantity == "test_accuracy",
            what=what,
            names=("with batch norm", "without"),
            shown=shown,
            absent=_why_absent(plain if first else batch),
        )
        found.append(unless_guessing(judged, chance_of(record), networks))
    return found


def _why_absent(arm: ArmSummary | None) -> str:
    if arm is None:
        return "The arm was not trained."
    if arm.diverged_at_step:
        return f"The loss was not finite at step {_steps(arm.diverged_at_step[0])}."
    return f"{arm.measured} of {arm.seeds} seeds are measured, in both arms together too few."


# What is said in sentences.


def _headline(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say how the arms end and, where the seeds allow it, how soon each is at what both reach."""
    batch, plain = pair({arm.arm: arm for arm in arms if arm.test_accuracy})
    if batch is None or plain is None:
        return _without_pair(arms)
    assert batch.test_accuracy
    assert plain.test_accuracy
    both = f"{percent(batch.test_accuracy.mean)} with batch norm, {percent(plain.test_accuracy.mean)} without"
    if all(is_guessing(arm.test_accuracy, chance_of(record)) for arm in (batch, plain)):
        return f"Neither is surely better than guessing: {both}"
    ends = f"Accuracy {both}" if are_apart(batch.test_accuracy, plain.test_accuracy) else f"Alike: {both}"
    first, second = batch.steps_to_common, plain.steps_to_common
    if not (first and second and are_apart(first, second)):
        return ends
    return f"{ends}; common level in {_steps(first.mean)} and {_steps(second.mean)} steps"


def _without_pair(arms: Sequence[ArmSummary]) -> str:
    """Say what is known where batch norm or no normalization has no accuracy."""
    known = {arm: arm.test_accuracy.mean for arm in arms if arm.test_accuracy}
    lost = [arm.arm for arm in arms if arm.diverged_at_step]
    if not known:
        return f"No network ended with a finite loss: {few_arms(lost)}" if lost else "Nothing is measured yet"
    if len(known) > 2:
        best = max(known, key=lambda arm: known[arm])
        return f"Accuracy {percent(known[best])} with {arm_label(best.arm)}, the highest of {len(known)} arms"
    return f"Accuracy {listing([f'{percent(value)} with {arm_label(arm.arm)}' for arm, value in known.items()])}"


def _lead(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say on what the headline rests: network, steps, rate, seeds, and which runs are not in it."""
    config = record.config
    lost = [f"{len(arm.diverged_at_step)} with {arm_label(arm.arm)}" for arm in arms if arm.diverged_at_step]
    return (
        f"Hidden layers of {listing([str(width) for width in config['widths']])} sigmoids, trained for "
        f"{_steps(config['steps'])} steps on {config['batch_size']} binary images of {data_label(record)} at learning "
        f"rate {rate(config['lr'])}; {len(arms)} variants that differ in normalization alone; "
        f"{seeds_label(len(config['seeds']))}."
    ) + (f" Runs whose loss was not finite, left out of all means: {listing(lost)}." if lost else "")


def _reading(arms: Sequence[ArmSummary]) -> str:
    """Say how the table's shifts are to be read, and how they are in evaluation mode."""
    batch, plain = pair({arm.arm: arm for arm in arms})
    general = (
        "Drift is how far the median of what reaches a sigmoid was, at most, from where it ended, in units of the "
        "final distance from its 15th to its 85th percentile, the width; path is all that it moved from one "
        "measurement to the next; change of width is the largest over the smallest. Each is that of the middle one of "
        "the last hidden layer's sigmoids."
    )
    if not (batch and plain and batch.eval_drift and plain.eval_drift and batch.eval_width_ratio):
        return general
    return (
        f"{general} In evaluation mode, where running statistics begin as 0 and 1 whatever the network, batch norm's "
        f"drift is {number(batch.eval_drift.mean)} and its width changes by a factor of "
        f"{number(batch.eval_width_ratio.mean)}; without normalization the mode changes nothing."
    )


def _method(record: Record) -> list[str]:
    config, resolved = record.config, record.resolved
    return [
        f"Data: {data_label(record)}, {resolved['train_images']:,} training and {resolved['validation_images']:,} test "
        "images of 28 x 28 pixels, made binary at half of full brightness. The defaults of learning rate and initial "
        "weights were chosen on training images kept aside. "
        "A seed decides initial weights and order of the images, alike in every arm.",
        f"Training: SGD without momentum or weight decay, learning rate {rate(config['lr'])} throughout; weights from "
        f"a normal distribution of standard deviation {rate(config['init_std'])}, biases from zero. Normalization "
        "stands between each hidden layer's linear map and its sigmoids. It ran on "
        f"{resolved['device']} in {resolved['precision']}.",
        "What reaches the last hidden layer's sigmoids is measured over the test images in training mode, as in the "
        f"paper, in batches of {config['batch_size']} that are normalized by their own moments; running statistics are "
        "left alone. In this mode a normalized input has, by construction, the mean and the standard deviation that "
        "the layer's bias and weight say: it can shift only as far as these are trained to. The figure shows the "
        "layer's first sigmoid in the first seed, not a chosen one.",
        "Measured before training, after each hundredth of it and, within the first, after 1, 2, 4, ... steps. The "
        "common accuracy of a seed is the lower of the two that batch norm and no normalization end with.",
    ]


EXPERIMENT = Experiment(name="classic", config=ClassicConfig, quick=QUICK, check=_check, work=_work, describe=describe)
