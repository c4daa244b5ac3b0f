"""Log the batch statistics of a training, and compare predictions of the next batch's.

Question: how near do running statistics that tune themselves come to the best fixed momentum, known in hindsight?

Expected: at most 1.06 times its squared error in every layer, without a number to choose; torch's 0.1 several times.

Each seed is a cell. Its measurements, for each batch norm as the subject: ``channels``, and for the mean and, with
``var_`` before their names, for the variance

- ``best_momentum`` of the fixed ones, and ``best_error``: its squared error, averaged over batches and channels, in
  variances of the channel (for the variance, in squared variances);
- ``self_tuned`` and ``torchs``: the errors of self-tuned statistics and of torch's momentum 0.1, over the best one.

Cost: a minute and a half for 500 steps of the cnn on two cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

from steadynorm.lab.cells import Job, Measure, measure_cells
from steadynorm.lab.configuration import ExperimentConfig, Network, check_experiment
from steadynorm.lab.data import batches
from steadynorm.lab.describe.arms import Arm, Reduction
from steadynorm.lab.describe.claims import expected
from steadynorm.lab.describe.figures import chart
from steadynorm.lab.describe.method import data_sentence, paragraphs, sentences
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.networks import build_network, check_network
from steadynorm.lab.trials import DEPTH, WIDTHS
from steadynorm.ops.registration import moments
from steadynorm.reporting.claims import judge
from steadynorm.reporting.records import Cell, Measurement, Record
from steadynorm.reporting.report import Claim, Claims, Figure, Figures, Report, Section, Table
from steadynorm.statistics import Moments, SelfTuned, update_running_
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["EXPERIMENT", "PARTS", "QUANTITIES", "StatisticsConfig", "errors", "predict"]

Array = NDArray[np.float64]

MOMENTA = tuple(2.0**-k for k in range(11))
"""Fixed momenta, those of the self-tuned bank; each begins as the average of the batches so far."""
TORCHS = 0.1
"""torch's momentum; it begins at mean 0 and variance 1."""
AT_MOST = 1.06
"""Error of self-tuned statistics over that of the best fixed momentum."""
AROUND = 25
"""Batches on either side over which a channel's variance, the unit of errors, is averaged."""
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
PARTS = ("", "var_")
"""Prefixes of the quantities of the mean and of the variance."""
QUANTITIES = ("best_momentum", "best_error", "self_tuned", "torchs")


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig(ExperimentConfig):
    """Log every layer's batch statistics while a network trains, then predict each batch's from those before it.

    Squared errors are multiples of the error of the best fixed momentum, which is chosen in hindsight for each layer,
    for its mean and for its variance.
    """

    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=("--seed",))] = (0,)
    """Seeds of weights and order; a network is trained for each."""
    network: Network = "cnn"
    """As for steadynorm compare, with plain batch norm."""
    steps: int = 500
    """Steps of training, each of which is logged."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("--batch",))] = 128
    """Images in a step."""
    lr: float = 0.1
    """Learning rate of SGD."""


QUICK: dict[str, Any] = {"steps": 60, "batch_size": 64}


def _check(config: StatisticsConfig) -> None:
    check_network(config.network)
    check_experiment(config, least={"steps": 2, "batch_size": 2})  # the first batch has no prediction


def _work(task: Task[StatisticsConfig]) -> None:
    measure_cells([{"seed": seed} for seed in task.config.seeds], _measure, task)


def _measure(task: Task[StatisticsConfig]) -> Measure:
    """Make the function that trains the network of a seed, and then predicts its batches."""

    def measure(job: Job) -> Iterator[Measurement]:
        for layer, (log, count) in _log(task, job.factors["seed"], job.advance).items():
            yield Measurement(subject=layer, quantity="channels", value=log.shape[2])
            for quantity, value in errors(log, count).items():
                yield Measurement(subject=layer, quantity=quantity, value=value)

    return measure


def _log(
    task: Task[StatisticsConfig], seed: int, advance: Callable[[float, str], None]
) -> dict[str, tuple[Tensor, int]]:
    """Train, and return the statistics of every batch norm's batches with the number of values per channel."""
    config, dataset, device = task.config, task.dataset, torch.device(task.record.resolved["device"])
    torch.manual_seed(seed)
    model = build_network(
        config.network,
        arm="batch_norm",
        depth=DEPTH,
        widths=WIDTHS,
        classes=len(dataset.classes),
        channels=dataset.channels,
        image_size=dataset.image_size,
        seed=seed,
    )
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    rows: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for named in batch_norms_of(model):
        named.module.register_forward_pre_hook(_keeper(rows.setdefault(named.name, []), counts, named.name))
    model.train()
    bf16 = task.record.resolved["precision"] == "bf16"
    how: dict[str, Any] = {"batch_size": config.batch_size, "seed": seed, "augment": "none", "device": device}
    epochs = (batches(dataset.train, dataset=dataset, epoch=epoch, **how) for epoch in itertools.count(1))
    for step, (x, labels) in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), config.steps), start=1):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(x).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance(step / config.steps, "")
    return {name: (torch.stack(kept).double().cpu(), counts[name]) for name, kept in rows.items()}


def _keeper(kept: list[Tensor], counts: dict[str, int], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Record mean and unbiased variance of a layer's input."""

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].detach()
        counts[name] = x.numel() // x.shape[1]
        mean, var = moments(x)
        kept.append(torch.stack((mean, var * (counts[name] / (counts[name] - 1)))))

    return keep


def errors(log: Tensor, count: int) -> dict[str, float]:
    """Compare all methods on one layer; see the module for the quantities.

    Args:
        log: mean and unbiased variance of every batch, float64, shape (T, 2, C).
        count: values per channel and batch.
    """
    seen = log.numpy()
    unit = _smooth(seen[:, 1])
    units = np.stack([unit, unit**2], 1)

    def error(predicted: Array) -> Array:
        squared: Array = ((predicted[1:] - seen[1:]) ** 2 / units[1:]).mean((0, 2))
        return squared

    fixed = np.stack([error(predict(log, count, momentum=momentum)) for momentum in MOMENTA])
    best = fixed.min(0)
    found = {
        "best_momentum": np.array(MOMENTA)[fixed.argmin(0)],
        "best_error": best,
        "self_tuned": error(predict(log, count)) / best,
        "torchs": error(predict(log, count, momentum=TORCHS, from_torchs_start=True)) / best,
    }
    return {part + name: float(values[at]) for name, values in found.items() for at, part in enumerate(PARTS)}


@torch.no_grad()
def predict(log: Tensor, count: int, *, momentum: float | None = None, from_torchs_start: bool = False) -> Array:
    """Predict every batch from those before it, shape (T, 2, C); the first prediction has no meaning.

    Args:
        log: as for :func:`errors`.
        count: as for :func:`errors`.
        momentum: weight of a new batch; None is self-tuned.
        from_torchs_start: whether to begin at mean 0 and variance 1, else with the average of the batches so far.
    """
    state = SelfTuned.begin(log.shape[2], dtype=torch.float64)
    mean, var = torch.zeros(2, log.shape[2], dtype=torch.float64)
    var += 1
    predicted, weight = torch.empty_like(log), 0.0
    for step, (batch_mean, batch_var) in enumerate(log):
        predicted[step] = torch.stack((mean, var))
        batch = Moments(mean=batch_mean, var=batch_var * ((count - 1) / count), count=count)
        if momentum is None:
            state = state.follow(batch)
            mean, var = state.estimate()
            continue
        weight = (1 - momentum) * weight + momentum
        update_running_(mean, var, batch, momentum=momentum if from_torchs_start else momentum / weight)
    return predicted.numpy()


def _smooth(values: Array) -> Array:
    """Average over the batches around each one, fewer at the ends."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
    places = np.arange(len(values))
    low, high = np.maximum(places - AROUND, 0), np.minimum(places + AROUND + 1, len(values))
    smooth: Array = (sums[high] - sums[low]) / (high - low)[:, None]
    return smooth


def describe(record: Record) -> Report:
    """Describe how near self-tuned statistics come to the best fixed momentum."""
    cells = [cell for cell in record.cells if cell.status == "finished"]
    layers = layers_of(cells)
    ratios = np.array([_means(layer, "self_tuned") for layer in layers]).reshape(-1, 2)
    average, worst = (ratios.mean(0).tolist(), ratios.max(0).tolist()) if layers else (None, None)
    table = Table.of(
        layers,
        {
            "Layer": lambda layer: layer.arm,
            "Channels": lambda layer: f"{layer.values['channels'][0]:.0f}",
            "Best momentum: mean, variance": _pair("best_momentum", ".2g"),
            "Self-tuned: mean, variance": _pair("self_tuned", ".3f"),
            "Momentum 0.1: mean, variance": _pair("torchs", ".1f"),
        },
    )
    most = f"{max(worst):.2f} times as much as the best fixed momentum" if worst else ""
    return Report(
        headline=f"Self-tuned statistics err at most {most}" if most else "Nothing is measured yet",
        lead=sentences(record, LEAD),
        table=table,
        sections=[
            expected(Claims([_claim(average, worst)])),
            Section(title="Errors by layer", short="Layers", blocks=[Figures(_figure(cells)), table]),
        ],
        method=paragraphs(record, METHOD, data_is=data_sentence(record)),
        finished=bool(record.cells) and all(cell.has_ended for cell in record.cells),
        findings={
            "self_tuned": {"average": average, "worst": worst, "limit": AT_MOST},
            "layers": [{"layer": layer.arm, **layer.spreads} for layer in layers],
        },
    )


def layers_of(cells: Sequence[Cell]) -> list[Arm]:
    """Return every layer, in the order of the network, with its quantities over the seeds."""

    def of(layer: str, quantity: str) -> Reduction:
        return lambda cell: cell.values(quantity)[layer]

    quantities = ["channels", *(part + name for name in QUANTITIES for part in PARTS)]
    layers = cells[0].values("channels") if cells else ()
    return [Arm.of(layer, cells, {quantity: of(layer, quantity) for quantity in quantities}) for layer in layers]


def _means(layer: Arm, quantity: str) -> list[float]:
    """Return the means over the seeds, of the mean and of the variance."""
    return [found.mean for part in PARTS if (found := layer[part + quantity])]


def _pair(quantity: str, form: str) -> Callable[[Arm], str]:
    return lambda layer: ", ".join(f"{value:{form}}" for value in _means(layer, quantity))


def _claim(average: Sequence[float] | None, worst: Sequence[float] | None) -> Claim:
    claim = f"Self-tuned statistics err at most {AT_MOST:g} times as much as the best fixed momentum, in every layer."
    if average is None or worst is None:
        return judge(claim, None, "No seed is measured yet.")
    found = zip(("mean", "variance"), average, worst, strict=True)
    measured = ", ".join(f"{what} {at:.3f} (worst layer {most:.3f})" for what, at, most in found)
    return judge(claim, max(worst) <= AT_MOST, f"Averages over the layers: {measured}.")


def _figure(cells: Sequence[Cell]) -> list[Figure]:
    names = {"self_tuned": "self-tuned", "torchs": "momentum 0.1"}
    rows = [
        {"layer": f"{layer}, {what}", "method": label, "error": cell.values(part + quantity)[layer]}
        for cell in cells
        for layer in cell.values("channels")
        for part, what in zip(PARTS, ("mean", "variance"), strict=True)
        for quantity, label in names.items()
    ]
    return chart(
        "dot_ranges",
        rows,
        name="errors",
        title="Error over that of the best fixed momentum",
        caption="Dot: mean over the seeds; line: their range. 1 is the best fixed momentum, chosen in hindsight.",
        rows="layer",
        x="error",
        x_title="squared error, best = 1",
        hue="method",
        order=list(names.values()),
    )


LEAD = """
{network} on {data}, batches of {batch_size}, learning rate {lr}, {steps} steps; {seeds}. Squared error of predicting
the next batch's statistics, that of the best fixed momentum being 1.
"""
METHOD = f"""
{{data_is}}

A {{network}} with plain batch norm trains by SGD with momentum {MOMENTUM} and weight decay {WEIGHT_DECAY:g} on
{{device}} in {{precision}}. Mean and unbiased variance of what goes into each batch norm are logged at every step.

Each batch is then predicted from those before it: by the momenta 1, 1/2, ... 1/{1 / MOMENTA[-1]:.0f}, which begin with
the average of what was seen; by torch's {TORCHS:g}, which begins at mean 0 and variance 1; and by self-tuned
statistics. An error is the squared difference to what came, in variances for the mean and squared variances for the
variance (the channel's average over {2 * AROUND + 1} batches around), averaged over channels and batches. The best
momentum is chosen in hindsight for each layer, for mean and variance apart.
"""

EXPERIMENT = Experiment(
    name="statistics",
    config=StatisticsConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    trains=lambda config: ("batch_norm",),
)
