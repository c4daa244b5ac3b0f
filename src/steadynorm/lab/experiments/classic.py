"""Train the small sigmoid network of the first figure on batch normalization, with it and without.

Question: is a network of sigmoids right more often, and sooner, when its hidden layers are normalized, and is what
arrives at a sigmoid then distributed more steadily while the network trains?

Expected (Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.1 and figure 1): higher test accuracy; in the plain
network the distribution's mean and variance change much, in the normalized one they hardly do. The paper gives neither
the learning rate nor how small the initial weights are; ``docs/classic.md`` says how both were chosen.

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
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.cells import Job, Line, Measure, measure_cells
from steadynorm.lab.configuration import Data, ExperimentConfig, check_experiment
from steadynorm.lab.data import Dataset, Images
from steadynorm.lab.data.images import random_stream
from steadynorm.lab.describe.arms import Arm, Reduction, arms_at, final, finals, if_finished
from steadynorm.lab.describe.claims import expected, left_out, with_and_without
from steadynorm.lab.describe.figures import arm_figure
from steadynorm.lab.describe.method import data_words, paragraphs, sentences
from steadynorm.lab.describe.names import arm_label, few_arms, pair
from steadynorm.lab.describe.networks import all_measured
from steadynorm.lab.describe.tables import accuracy_column, arm_cell, ending, spread_column, spread_entry, status_entry
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.sigmoids import PERCENTILES, build_network, check_arms, inputs_in_training, percentiles, shifts
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import is_guessing, too_few, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import number, percent, seconds
from steadynorm.reporting.records import Cell, Measurement, Record
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, are_apart, spread
from steadynorm.reporting.words import listing

__all__ = ["EXPERIMENT", "ClassicConfig", "measured_steps"]

SHOWN_UNITS = 8  # units whose percentiles are recorded at every measurement
PARTS = 100  # parts of the training, with a measurement after each
INK = 128  # pixels of at least this value are 1, others 0


@dataclass(frozen=True, kw_only=True)
class ClassicConfig(ExperimentConfig):
    """Train the sigmoid network of batch norm's first figure with and without it, and watch what reaches a sigmoid.

    It needs no data: it trains on the digits that come with scikit-learn. For the paper's data give --data mnist, and
    --data-dir if they are already on disk. Images of all data are made binary.
    """

    data: Data = "digits"
    """digits: 1,797 that come with scikit-learn, enlarged; or what other experiments take: mnist, a directory with a
    folder of images for each class, an .npz file and so on (docs/your_data.md)."""
    precision: Literal["fp32"] = "fp32"
    """The network is too small to gain from a lower precision."""
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


Split = tuple[Tensor, Tensor]
"""Binary images, shape (N, pixels), and their labels, int64 of shape (N,)."""


def _binary(images: Images, device: torch.device) -> Split:
    return (images.pixels >= INK).flatten(1).to(device), images.labels.to(device)


def _check_fits(config: ClassicConfig, dataset: Dataset) -> None:
    """Refuse images without any difference left.

    Raises:
        UserError: all binary training images are the same.
    """
    x, _ = _binary(dataset.train, torch.device("cpu"))
    if bool((x == x[0]).all()):
        raise UserError(
            "--data: all training images are alike once they are binary at half of full brightness. Give others."
        )


def _work(task: Task[ClassicConfig]) -> None:
    config = task.config
    grid = [{"arm": arm, "seed": seed} for seed in config.seeds for arm in config.arms]
    measure_cells(grid, _measure, task)


def _measure(task: Task[ClassicConfig]) -> Measure:
    """Make the function that trains and measures the network of a cell."""
    config, device = task.config, torch.device(task.record.resolved["device"])
    x, labels = _binary(task.dataset.train, device)
    binary, test_labels = _binary(task.dataset.validation, device)
    test = (binary.float(), test_labels)

    def measure(job: Job) -> Iterator[Measurement | Line]:
        seed = job.factors["seed"]
        network = build_network(
            job.factors["arm"],
            inputs=x.shape[1],
            widths=config.widths,
            classes=len(task.dataset.classes),
            std=config.init_std,
            seed=seed,
        ).to(device)
        batches = ((x[chosen].float(), labels[chosen]) for chosen in _batches(len(x), config.batch_size, seed))
        return _watch(network, batches, test, config, job.advance)

    return measure


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield the images of each step, without end: whole batches of a new order in each pass."""
    for epoch in itertools.count(1):
        order = torch.from_numpy(random_stream(seed, epoch).permutation(count))
        yield from order[: count // size * size].view(-1, size)


def _watch(
    network: nn.Sequential,
    batches: Iterator[Split],
    test: Split,
    config: ClassicConfig,
    advance: Callable[[float, str], None],
) -> Iterator[Measurement | Line]:
    """Train a network, with pauses to measure it."""
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
        history.append(_arriving(network, test[0], config.batch_size))
        judged = list(_judge(network, test, step))
        yield from judged
        yield from _shown(history[-1][0], step)
        if 10 * step // config.steps > 10 * done // config.steps:
            accuracy, test_loss = (row.value for row in judged)
            told = f"train {number(loss)}  test {number(test_loss)} {accuracy:.1%}"
            yield Line(share=step / config.steps, text=f"step {step:,}/{config.steps:,}  {told}")
        done = step
        advance(step / config.steps, "")
    for place, mode in enumerate(("", "eval_")):
        for quantity, values in shifts(torch.stack(history)[:, place]).items():
            for unit, value in enumerate(values.tolist()):
                yield Measurement(subject=f"unit {unit}", step=config.steps, quantity=mode + quantity, value=value)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Split]) -> float:
    """Take a step on each batch; return their mean loss."""
    network.train()
    losses = []
    for x, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def _arriving(network: nn.Sequential, x: Tensor, batch_size: int) -> Tensor:
    """Return the percentiles of the last sigmoids' inputs, in training and in evaluation; shape (2, 3, units)."""
    training = inputs_in_training(network, x, batch_size=batch_size)
    return torch.stack([percentiles(training), percentiles(network[:-2](x))]).cpu()


@torch.no_grad()
def _judge(network: nn.Sequential, test: Split, step: int) -> Iterator[Measurement]:
    x, labels = test
    logits = network(x)
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    yield Measurement(step=step, quantity="test_accuracy", value=accuracy)
    yield Measurement(step=step, quantity="test_loss", value=F.cross_entropy(logits, labels).item())


def _shown(found: Tensor, step: int) -> Iterator[Measurement]:
    for unit, values in enumerate(found.T[:SHOWN_UNITS].tolist()):
        for name, value in zip(PERCENTILES, values, strict=True):
            yield Measurement(subject=f"unit {unit}", step=step, quantity=name, value=value)


def _check(config: ClassicConfig) -> None:
    check_arms(config.arms)
    least = {"steps": 1, "batch_size": 2} | ({} if config.train_images is None else {"train_images": 2})
    check_experiment(config, ("arms",), least=least)
    if not config.widths or min(config.widths) < 1:
        raise UserError(f"--widths: must be positive numbers, got {' '.join(map(str, config.widths)) or 'none'}.")
    if not 0 < config.init_std < math.inf:
        raise UserError(f"--init-std: must be a positive number, got {config.init_std}.")


def describe(record: Record) -> Report:
    """Describe the results of the sigmoid network."""
    arms = arms_of(record)
    blocks = (Figures(_curves(record, arms)), _table(record, arms), Text(_reading(arms)))
    sigmoids = Figures([*_percentiles(record, arms), *_shifts(record, arms)])
    return Report(
        headline=_headline(record, arms),
        lead=sentences(record, LEAD, variants=len(arms)) + left_out(arms),
        table=Table.of(arms, SHORT),
        sections=(
            Section(title="Result", blocks=blocks),
            expected(Text(_rule(record)), Claims(_claims(record, arms))),
            Section(title="What reaches a sigmoid", blocks=(sigmoids,)),
        ),
        method=paragraphs(
            record,
            METHOD,
            test_batch=min(int(record.config["batch_size"]), int(record.resolved["validation_images"])),
            each=", each channel by itself" * (record.resolved.get("channels", 1) > 1),
            **data_words(record),
        ),
        finished=all_measured(record),
        findings=_findings(arms),
    )


SHOWN = "unit 0"
"""The sigmoid whose input the figures show: the first, not a chosen one."""
SHIFTS = ("drift", "path", "width_ratio", "eval_drift", "eval_path", "eval_width_ratio")
"""Shifts; each is the median over the last hidden layer's sigmoids."""


def arms_of(record: Record) -> list[Arm]:
    """Reduce the networks of each arm to its numbers; diverged networks have none."""
    quantities: dict[str, Reduction] = {
        "test_accuracy": final("test_accuracy"),
        "train_loss": final("train_loss"),
        "steps_to_common": _steps_to_common(record),
        **{name: _of_the_middle(name) for name in SHIFTS},
        "seconds": if_finished(lambda cell: cell.seconds or 0),
    }
    return arms_at(record, quantities, arm=record.config["arms"])


def _steps_to_common(record: Record) -> Reduction:
    """Find the first measured step with a seed's common accuracy; infinite if it is never reached.

    That is the lower of the two that batch norm and no normalization end with.
    """
    first, second = pair({arm: finals(record.select(arm=arm), "test_accuracy") for arm in record.config["arms"]})
    first, second = first or {}, second or {}

    def steps(cell: Cell) -> float:
        seed = cell.factors["seed"]
        if cell.status != "finished" or seed not in first or seed not in second:
            return math.nan
        common, series = min(first[seed], second[seed]), cell.series("test_accuracy")
        return min((step for step, accuracy in series.items() if accuracy >= common), default=math.inf)

    return steps


def _of_the_middle(quantity: str) -> Reduction:
    """Take the median over the sigmoids; one whose input has no width counts as infinitely far."""

    def middle(cell: Cell) -> float:
        values = cell.values(quantity).values()
        return statistics.median(math.inf if math.isnan(value) else value for value in values) if values else math.nan

    return middle


def _findings(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the summaries and the data of the figures."""

    def summary(arm: Arm) -> dict[str, Any]:
        counts = {"seeds": arm.seeds, "measured": len(arm.ended), "common_missed": _missed(arm)}
        return {"arm": arm.arm, **counts, "diverged_at_step": arm.diverged_at_step, **arm.spreads}

    def curve(arm: Arm) -> dict[int, Spread | None]:
        series = [cell.series("test_accuracy") for cell in arm.ended]
        steps = sorted({step for one in series for step in one})
        return {step: spread(one[step] for one in series if step in one) for step in steps}

    return {
        "arms": {arm.arm: summary(arm) for arm in arms},
        "sigmoids": {
            arm.arm: {name: spread(v for cell in arm.cells for v in cell.values(name).values()) for name in SHIFTS}
            for arm in arms
        },
        "test_accuracy": {arm.arm: curve(arm) for arm in arms},
        "shown_unit": {
            first.name: {name: first.series(name, SHOWN) for name in PERCENTILES}
            for arm in arms
            for first in arm.ended[:1]
        },
    }


SHORT: Mapping[str, Callable[[Arm], Entry | str]] = {
    "arm": lambda arm: arm.arm,
    "seeds": lambda arm: str(arm.seeds),
    "test accuracy": lambda arm: ending(arm["test_accuracy"], arm.lost),
    "steps to common accuracy": lambda arm: _common(arm),
    "drift": spread_column("drift"),
    "change of width": spread_column("width_ratio"),
    "s": lambda arm: spread_entry(arm["seconds"], seconds).text,
}


def _table(record: Record, arms: Sequence[Arm]) -> Table:
    return Table.of(
        arms,
        {
            "Normalization": lambda arm: arm_cell(record, arm.arm),
            "Test accuracy": accuracy_column("test_accuracy"),
            "Steps to common accuracy": _common,
            "Training loss": spread_column("train_loss"),
            "Drift": spread_column("drift"),
            "Path": spread_column("path"),
            "Change of width": spread_column("width_ratio"),
            "Time": lambda arm: spread_entry(arm["seconds"], seconds).text,
            "Status": status_entry,
        },
    )


def _common(arm: Arm) -> Entry:
    found, missed = spread_entry(arm["steps_to_common"], _steps), _missed(arm)
    if not missed:
        return found
    return Entry(text=found.text if arm["steps_to_common"] else "never", note=f"never in {missed} of {arm.seeds} seeds")


def _missed(arm: Arm) -> int:
    return sum(map(math.isinf, arm.values["steps_to_common"]))


def _steps(value: float) -> str:
    return f"{value:,.0f}"


def _curves(record: Record, arms: Sequence[Arm]) -> list[Figure]:
    """Draw accuracy and loss over the steps."""
    several = " Line: mean of the seeds. Band: their lowest to highest value." * (len(record.config["seeds"]) > 1)
    found = []
    for name, title, caption in (
        ("test_accuracy", "Test accuracy", "In evaluation mode, from the first step on."),
        ("train_loss", "Training loss", "Mean cross-entropy in nats over the steps since the last point."),
    ):
        rows = [
            {"arm": arm.arm, "step": step, "value": value}
            for arm in arms
            for cell in arm.ended
            for step, value in cell.series(name).items()
            if step > 0 and math.isfinite(value)
        ]
        axes = {"y": "value", "percent": name == "test_accuracy", **_axis(record)}
        found += arm_figure(record, "lines", rows, name=name, title=title, caption=caption + several, **axes)
    return found


def _axis(record: Record) -> dict[str, Any]:
    steps = int(record.config["steps"])
    return {"x": "step", "x_log": steps > 10, "x_domain": (1, max(2, steps))}


def _percentiles(record: Record, arms: Sequence[Arm]) -> list[Figure]:
    """Draw the input of one sigmoid, in each arm's first measured seed."""
    first = {arm.arm: arm.ended[0] for arm in arms if arm.ended}
    seeds = listing([str(seed) for seed in sorted({cell.factors["seed"] for cell in first.values()})])
    rows = [
        {"arm": arm, "step": step} | {name: cell.series(name, SHOWN)[step] for name in PERCENTILES}
        for arm, cell in first.items()
        for step in cell.series("p50", SHOWN)
        if step > 0
    ]
    return arm_figure(
        record,
        "lines",
        rows,
        name="percentiles",
        title="Input of one sigmoid",
        caption="First sigmoid of the last hidden layer, over the test images in training mode. Line: median. Band: "
        f"15th to 85th percentile. Seed {seeds}.",
        y="p50",
        band=("p15", "p85"),
        **_axis(record),
    )


def _shifts(record: Record, arms: Sequence[Arm]) -> list[Figure]:
    """Draw a point for every sigmoid with drift and change of width, that is, with an input that varies."""
    rows = [
        {"arm": arm.arm, "drift": drift, "width_ratio": ratio}
        for arm in arms
        for cell in arm.ended
        for unit, drift in cell.values("drift").items()
        if math.isfinite(drift + (ratio := cell.values("width_ratio").get(unit, math.nan)))
    ]
    return arm_figure(
        record,
        "points",
        rows,
        name="shifts",
        title="How far each sigmoid's input shifts",
        caption="A point for each sigmoid of the last hidden layer, all seeds; lower left is steadier.",
        x="drift",
        y="width_ratio",
        x_title="farthest that the median was from its end, in final widths",
        y_title="largest over smallest width",
    )


RULE = "An expectation is met where the means differ as it says and the ranges of the seeds do not overlap."


def _rule(record: Record) -> str:
    """Describe when an expectation is met, and the data it is for."""
    return RULE if record.config["data"] == "mnist" else f"The paper's expectations, which are of MNIST. {RULE}"


def _claims(record: Record, arms: Sequence[Arm]) -> list[Claim]:
    """Judge the paper's expectations, if both arms have learned something."""
    both = pair({arm.arm: arm for arm in arms})
    networks = {arm.label: arm["test_accuracy"] for arm in both if arm}
    place = "Inputs of sigmoids keep their place better with batch norm."
    width = "Inputs of sigmoids keep their width better with batch norm."
    sooner = "Batch norm is sooner at the accuracy that both reach."
    higher = "Batch norm ends with the higher test accuracy."
    judged = (
        with_and_without(higher, both, "test_accuracy", "after the last step", percent, higher=True),
        with_and_without(sooner, both, "steps_to_common", "first measured step there", _steps),
        with_and_without(place, both, "drift", "the middle one's drift"),
        with_and_without(width, both, "width_ratio", "the middle one's change of width"),
    )
    return [unless_guessing(item, chance_of(record), networks) for item in judged]


def _headline(record: Record, arms: Sequence[Arm]) -> str:
    """Describe the final accuracy of the arms and, if the seeds allow it, how soon each reaches the common one."""
    batch, plain = pair({arm.arm: arm for arm in arms if arm["test_accuracy"]})
    if batch is None or plain is None:
        return _without_pair(arms)
    ends = (batch["test_accuracy"], plain["test_accuracy"])
    with_norm, without = (percent(end.mean if end else None) for end in ends)
    both = f"{with_norm} with batch norm, {without} without"
    if all(is_guessing(end, chance_of(record)) for end in ends):
        return too_few(chance_of(record)) or f"Neither is surely better than guessing: {both}"
    claim = f"Accuracy {both}" if are_apart(*ends) else f"Alike: {both}"
    first, second = batch["steps_to_common"], plain["steps_to_common"]
    if not (first and second and are_apart(first, second)):
        return claim
    return f"{claim}; common level in {_steps(first.mean)} and {_steps(second.mean)} steps"


def _without_pair(arms: Sequence[Arm]) -> str:
    """Describe the result if batch norm or no normalization has no accuracy."""
    known = {arm.arm: accuracy.mean for arm in arms if (accuracy := arm["test_accuracy"])}
    lost = [arm.arm for arm in arms if arm.lost]
    if not known:
        return f"No network ended with a finite loss: {few_arms(lost)}" if lost else "Nothing is measured yet"
    if len(known) > 2:
        best = max(known, key=lambda arm: known[arm])
        return f"Accuracy {percent(known[best])} with {arm_label(best)}, the highest of {len(known)} arms"
    return f"Accuracy {listing([f'{percent(value)} with {arm_label(arm)}' for arm, value in known.items()])}"


def _reading(arms: Sequence[Arm]) -> str:
    """Explain the table's shifts, and describe those in evaluation mode, which no table shows."""
    batch, plain = pair({arm.arm: arm for arm in arms})
    drift, width = (batch["eval_drift"], batch["eval_width_ratio"]) if batch and plain else (None, None)
    evaluation = (
        f" In evaluation mode, where running statistics begin as 0 and 1 in every network, batch norm's drift is "
        f"{number(drift.mean)} and its width changes by a factor of {number(width.mean)}; without normalization the "
        "mode changes nothing."
        if drift and width and plain and plain["eval_drift"]
        else ""
    )
    return (
        "Drift is how far the median of what reaches a sigmoid was, at most, from where it ended, in units of the "
        "final distance from its 15th to its 85th percentile, the width; path is all that it moved; change of width "
        "is the largest over the smallest. Each is that of the middle one of the last hidden layer's sigmoids."
        f"{evaluation}"
    )


LEAD = """
Hidden layers of {widths} sigmoids, trained for {steps} steps on {batch_size} binary images of {data} at learning rate
{lr}; {variants} variants that differ in normalization alone; {seeds}.
"""
METHOD = """
Data: {data}, {train_images} training and {validation_images} test images{images} in {classes} classes, made binary at
half of full brightness{each}.{guessing} A seed decides initial weights and order of the images, alike in every arm.

Training: SGD without momentum or weight decay; weights from a normal distribution of standard deviation {init_std},
biases from zero. Normalization stands between each hidden layer's linear map and its sigmoids. It ran on {device} in
{precision}.

What reaches a sigmoid is measured over the test images in training mode, as in the paper, in batches of {test_batch}
that are normalized by their own moments; running statistics are left alone. A normalized input then has, by
construction, the mean and the standard deviation that the layer's bias and weight say: it can shift only as far as
these are trained to.

Measured before training, after each hundredth of it and, within the first, after 1, 2, 4, ... steps. The common
accuracy of a seed is the lower of the two that batch norm and no normalization end with.

The time of a network includes the compilation of its kernels, which the first one with batch norm may wait for.
"""


EXPERIMENT = Experiment(
    name="classic",
    config=ClassicConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    fits=_check_fits,
)
