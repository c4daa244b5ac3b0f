"""Follow the batch statistics of a real training, and compare what predicts the next batch.

Question: how near do running statistics that tune themselves come to the best fixed momentum, known in hindsight?

Expected: at most 1.06 times its squared error, without a number to choose; torch's 0.1 several times.

Cost: a minute and a half for 500 steps of the cnn on two cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from steadynorm.bench.benchmark import Benchmark, Flags
from steadynorm.bench.display import Display
from steadynorm.bench.record import Record
from steadynorm.lab.machine import choose_precision
from steadynorm.lab.networks import build_network
from steadynorm.ops.registration import moments
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.report import Table
from steadynorm.statistics import Moments, SelfTuned, update_running_

__all__ = ["BENCHMARK", "LayerErrors", "StatisticsConfig", "errors", "follow", "statistics_lines"]

Array = NDArray[np.float64]

MOMENTA = tuple(2.0**-k for k in range(11))
"""Fixed momenta, those of the self-tuned bank; each begins with the average of what it has seen."""
TORCHS = 0.1
"""torch's momentum; it begins at mean 0 and variance 1."""
AT_MOST = 1.06
"""Error of self-tuned statistics over that of the best fixed momentum."""
AROUND = 25
"""Batches to either side over which a channel's variance is averaged, as the unit of errors."""
DEPTH, WIDTHS, CLASSES = 6, (32, 64, 128), 10  # of the cnn, as compare has them
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig(Flags):
    """Log every layer's batch statistics while a network trains, then follow them in several ways.

    Each way predicts the next batch's mean and variance. Its squared error is told as a multiple of that of the best
    fixed momentum, which is chosen in hindsight for every layer, for the mean and for the variance.
    """

    network: Literal["cnn", "resnet20"] = "cnn"
    """Network of steadynorm compare, with plain batch norm."""
    data: Literal["shapes", "cifar10"] = "shapes"
    """shapes: embedded; cifar10: from --data-dir, else from the Hugging Face hub."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies."""
    steps: int = 500
    """Steps of training, each of which is logged."""
    batch: int = 128
    """Images per step."""
    lr: float = 0.1
    """Learning rate of SGD."""
    seed: int = 0
    """Of weights and order."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware multiplies bfloat16 matrices."""


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """One layer; pairs are for mean and variance."""

    layer: str
    channels: int
    best_momentum: tuple[float, float]
    best_error: tuple[float, float]
    """Mean over batches and channels of (predicted − seen)², in variances, and in squared variances."""
    self_tuned: tuple[float, float]
    """Error over the best one."""
    torchs: tuple[float, float]
    """Likewise, of momentum 0.1."""


def _plan(config: StatisticsConfig, head: Record, display: Display) -> Sequence[tuple[str, Tensor, int]]:
    """Train and log."""
    if config.steps < 2:
        raise UserError(f"--steps: the first batch is predicted by nothing, so at least 2, got {config.steps}.")
    device = torch.device(head["device"])
    head["precision"] = choose_precision(config.precision, device)
    logs = _log(config, device, head["precision"], display)
    return [(name, log, count) for name, (log, count) in logs.items()]


def _summarize(rows: Sequence[Record], head: Record) -> Record:
    found = np.array([row["self_tuned"] for row in rows]).reshape(-1, 2)
    if not len(found):
        return {}
    average, worst = found.mean(0).tolist(), found.max(0).tolist()
    return {"self_tuned": {"average": average, "worst": worst, "limit": AT_MOST, "met": max(worst) <= AT_MOST}}


def _table(record: Record) -> tuple[str, Table]:
    config = record["config"]
    run = f"batch {config['batch']}, rate {config['lr']:g}, {config['steps']} steps"
    what = "Squared error of predicting the next batch's statistics, that of the best fixed momentum being 1"
    columns: dict[str, Callable[[Record], str]] = {
        "layer": lambda row: row["layer"],
        "channels": lambda row: str(row["channels"]),
        "best momentum: mean, variance": lambda row: "{:.2g}, {:.2g}".format(*row["best_momentum"]),
        "self-tuned": lambda row: "{:.3f}, {:.3f}".format(*row["self_tuned"]),
        "0.1": lambda row: "{:.1f}, {:.1f}".format(*row["torchs"]),
    }
    return f"{what}; {config['network']} on {config['data']}, {run}", Table.of(record["layers"], columns)


def errors(name: str, log: Tensor, count: int) -> LayerErrors:
    """Compare all ways of following one layer.

    Args:
        name: of the layer.
        log: mean and unbiased variance of every batch, float64, shape (T, 2, C).
        count: values per channel and batch.
    """
    seen = log.numpy()
    unit = _smooth(seen[:, 1])
    units = np.stack([unit, unit**2], 1)

    def error(predicted: Array) -> Array:
        squared: Array = ((predicted[1:] - seen[1:]) ** 2 / units[1:]).mean((0, 2))
        return squared

    fixed = np.stack([error(follow(log, count, momentum=momentum)) for momentum in MOMENTA])
    best, at = fixed.min(0), fixed.argmin(0)
    return LayerErrors(
        layer=name,
        channels=log.shape[2],
        best_momentum=_pair([MOMENTA[k] for k in at]),
        best_error=_pair(best),
        self_tuned=_pair(error(follow(log, count)) / best),
        torchs=_pair(error(follow(log, count, momentum=TORCHS, from_torchs_start=True)) / best),
    )


@torch.no_grad()
def follow(
    log: Tensor, count: int, *, momentum: float | None = None, from_torchs_start: bool = False
) -> NDArray[np.float64]:
    """Give what is predicted of every batch before it is seen, shape (T, 2, C); of the first, without meaning.

    Args:
        log: as for :func:`errors`.
        count: likewise.
        momentum: weight of a new batch; None tunes itself.
        from_torchs_start: whether to begin at mean 0 and variance 1, else with the average of what was seen.
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
    result: NDArray[np.float64] = predicted.numpy()
    return result


def statistics_lines(record: Record) -> list[str]:
    """Say in a line what a record comes to."""
    found = record["self_tuned"]
    (mean, var), (worst_mean, worst_var) = found["average"], found["worst"]
    return [
        f"self-tuned over the best fixed momentum: mean {mean:.3f} (worst layer {worst_mean:.3f}), "
        f"variance {var:.3f} (worst layer {worst_var:.3f}); at most {found['limit']:g} "
        f"{'met' if found['met'] else 'not met'}"
    ]


def _line(layer: LayerErrors) -> str:
    pairs = {
        "best momentum": [f"{value:g}" for value in layer.best_momentum],
        "self-tuned": [f"{value:.3f}" for value in layer.self_tuned],
        "torch's 0.1": [f"{value:.2f}" for value in layer.torchs],
    }
    shown = "  ".join(f"{name} {mean}, {var}" for name, (mean, var) in pairs.items())
    return f"{layer.layer:24}{layer.channels:5} channels  {shown}"


def _log(
    config: StatisticsConfig, device: torch.device, precision: str, display: Display
) -> dict[str, tuple[Tensor, int]]:
    """Train, and give the statistics of every batch norm's batches with the number of values per channel."""
    from steadynorm.lab.data import batches, load_dataset  # which need packages that no other bench does

    dataset = load_dataset(config.data, data_dir=config.data_dir, progress=display.message)
    torch.manual_seed(config.seed)
    model = build_network(
        config.network, arm="batch_norm", depth=DEPTH, widths=WIDTHS, classes=CLASSES, seed=config.seed
    )
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    rows: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(_keeper(rows.setdefault(name, []), counts, name))
    model.train()
    step, epoch = 0, 0
    while step < config.steps:
        epoch += 1
        for x, labels in batches(
            dataset.train,
            dataset=dataset,
            batch_size=config.batch,
            seed=config.seed,
            epoch=epoch,
            augment="none",
            device=device,
        ):
            display.begin("training", number=step + 1, of=config.steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(x).float()
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if step == config.steps:
                break
    return {name: (torch.stack(kept).double().cpu(), counts[name]) for name, kept in rows.items()}


def _keeper(kept: list[Tensor], counts: dict[str, int], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Keep mean and unbiased variance of what goes into a layer."""

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].detach()
        counts[name] = x.numel() // x.shape[1]
        mean, var = moments(x)
        kept.append(torch.stack((mean, var * (counts[name] / (counts[name] - 1)))))

    return keep


def _smooth(values: Array) -> Array:
    """Average over the batches around each, fewer at the ends."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
    places = np.arange(len(values))
    low, high = np.maximum(places - AROUND, 0), np.minimum(places + AROUND + 1, len(values))
    smooth: Array = (sums[high] - sums[low]) / (high - low)[:, None]
    return smooth


def _pair(values: Array | list[float]) -> tuple[float, float]:
    mean, var = (float(value) for value in values)
    return mean, var


BENCHMARK = Benchmark(
    name="statistics",
    flags=StatisticsConfig,
    rows="layers",
    plan=_plan,
    label=lambda case: f"following {case[0]}",
    measure=lambda case, config, head: dataclasses.asdict(errors(*case)),
    lines=lambda row: [_line(LayerErrors(**row))],
    summarize=_summarize,
    closing=statistics_lines,
    table=_table,
)
"""A row has one layer's errors."""
