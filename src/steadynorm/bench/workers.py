"""Train on more and more workers and tell what their agreement costs: of gradients, and of batch statistics.

Question: how many images per second do N workers train together, and what do the all-reduce of the gradients and the
two collectives of every synchronised batch norm add to a step?

Expected: on one machine workers share its cores, so N workers of one thread are as fast as N cores; each collective
costs a fixed time and little for its size, because statistics are 2C + 1 numbers a layer.

Cost: some ten seconds for each number of workers, most of it for starting them.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from steadynorm.bench.display import Display
from steadynorm.bench.record import Record, begin_record, check_config, keep_record
from steadynorm.bench.timing import Spread, spread
from steadynorm.lab.machine import choose_device, choose_precision
from steadynorm.lab.networks import build_network
from steadynorm.lab.workers import average_gradients_, gathered, joined, number_of_workers

__all__ = ["Costs", "Line", "WorkersConfig", "fit", "run", "workers_lines"]

WAYS: dict[str, tuple[str, bool]] = {  # name -> arm, whether gradients are averaged
    "apart": ("batch_norm", False),
    "gradients": ("batch_norm", True),
    "synchronised": ("sync_batch_norm", True),
}
DEPTH, WIDTHS, CLASSES, SIZE = 6, (32, 64, 128), 10, 32  # of the cnn, as compare has them
LEARNING_RATE = 1e-4  # small, so that steps on noise do not run into infinities, whose arithmetic takes another time
SIZES = tuple(4**power for power in range(3, 12))  # numbers in an all-reduce: 64 to 4 million, 256 bytes to 16 MB
REPEATS = 9  # of an all-reduce of each size
STEPS = 4  # of each way in a round


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Time training steps on several workers of this machine: apart, with gradients averaged, and synchronised.

    Every worker has a batch of its own, so more workers train larger batches.
    """

    network: Literal["cnn", "resnet20"] = "cnn"
    """Network of steadynorm compare."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers; one beside another, each with --threads."""
    batch: int = 32
    """Images on each worker."""
    threads: int = 1
    """Of each worker."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware multiplies bfloat16 matrices."""
    seconds: float = 5.0
    """For timing the steps of each number of workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one; then a GPU for each worker."""
    out: Path | None = None
    """Directory for the record, bench_workers_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Seconds of an all-reduce as a function of its bytes: latency + bytes / bandwidth."""

    latency: float
    """Seconds."""
    bandwidth: float
    """Bytes per second; infinite where size makes no difference."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured of one number of workers. Times are of the slowest worker of each round, in milliseconds."""

    workers: int
    step_ms: dict[str, Spread]
    """Of a whole step, by way."""
    images_per_second: dict[str, float]
    """Of all workers together, by way, at the median step."""
    gradients_ms: Spread
    """What averaging the gradients adds to a step."""
    statistics_ms: Spread
    """What synchronising the statistics adds to that."""
    all_reduce: Line | None
    """Fitted to all-reduces of 256 bytes to 16 MB; None for one worker."""


def run(config: WorkersConfig, display: Display) -> Record:
    """Measure each number of workers.

    Returns:
        the record, which has been written where ``out`` says so.

    Raises:
        UserError: what was asked for cannot be done.
    """
    check_config(config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    head = begin_record("workers", config, device) | {"precision": precision, "threads": config.threads}
    found = []
    for number, count in enumerate(config.workers, start=1):
        display.doing(f"{count} worker{'' if count == 1 else 's'}", number=number, of=len(config.workers))
        found.append(_measure(config, count, device.type, precision))
        display.line(_line(found[-1]))
    model = _build(config.network, "sync_batch_norm", torch.device("cpu"))
    norms = sum(type(module).__name__ == "SyncBatchNorm" for module in model.modules())
    return keep_record(
        config.out,
        head
        | {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "norms": norms,
            "costs": [dataclasses.asdict(each) for each in found],
        },
        display,
    )


def workers_lines(record: Record) -> list[str]:
    """Say in lines what a record comes to."""
    lines = []
    for each in record["costs"]:
        speed, alone = (one["images_per_second"]["synchronised"] for one in (each, record["costs"][0]))
        share = (speed / each["workers"]) / (alone / record["costs"][0]["workers"])
        lines.append(
            f"{each['workers']} workers: {speed:,.0f} images/s synchronised, "
            f"{100 * share:.0f} % of the first's for each"
        )
    return lines


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """Fit latency + bytes / bandwidth to times, so that the relative errors are least; neither below zero.

    Args:
        sizes: bytes.
        seconds: of each, positive.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    columns = np.stack([1 / y, x / y], 1)
    latency, per_byte = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
    if per_byte <= 0:
        return Line(latency=float(np.exp(np.log(y).mean())), bandwidth=float("inf"))
    if latency <= 0:
        per_byte = float((columns[:, 1] @ np.ones_like(y)) / (columns[:, 1] @ columns[:, 1]))
        return Line(latency=0.0, bandwidth=1 / per_byte)
    return Line(latency=float(latency), bandwidth=float(1 / per_byte))


def _measure(config: WorkersConfig, count: int, device: str, precision: str) -> Costs:
    """Start the workers, as torchrun does, and put together what they found."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    times, sizes = elastic_launch(launch, _work)(config, device, precision)[0]
    images = config.batch * count
    return Costs(
        workers=count,
        step_ms={way: spread(each) for way, each in times.items()},
        images_per_second={way: images / statistics.median(each) * 1e3 for way, each in times.items()},
        gradients_ms=spread(_differences(times["gradients"], times["apart"])),
        statistics_ms=spread(_differences(times["synchronised"], times["gradients"])),
        all_reduce=fit([4 * size for size in sizes], list(sizes.values())) if sizes else None,
    )


def _differences(more: Sequence[float], less: Sequence[float]) -> list[float]:
    """Pair the rounds, in which both ways ran one after the other."""
    return [one - other for one, other in zip(more, less, strict=True)]


def _work(config: WorkersConfig, device: str, precision: str) -> tuple[dict[str, list[float]], dict[int, float]]:
    """Be one of the workers; each gives milliseconds of a step by way and round, and seconds by size of all-reduce."""
    torch.set_num_threads(config.threads)
    with joined():
        steps = {way: _stepper(config, way, torch.device(device), precision) for way in WAYS}
        for step in steps.values():
            step()
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        end = time.perf_counter() + config.seconds
        while len(times["apart"]) < 2 or max(gathered(time.perf_counter() < end)):
            for way, step in steps.items():
                times[way].append(max(gathered(_seconds(step) * 1e3)))
        return times, _all_reduces(device) if number_of_workers() > 1 else {}


def _stepper(config: WorkersConfig, way: str, device: torch.device, precision: str) -> Callable[[], None]:
    """Make a training step on noise."""
    arm, averages = WAYS[way]
    model = _build(config.network, arm, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    x = torch.randn(config.batch, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (config.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x).float()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        if averages:
            average_gradients_(model)
        optimizer.step()

    return step


def _build(network: str, arm: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = build_network(network, arm=arm, depth=DEPTH, widths=WIDTHS, classes=CLASSES, seed=0)
    on_device: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return on_device.train()


def _seconds(step: Callable[[], None]) -> float:
    """Time a step, averaged over a few that all workers begin together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def _all_reduces(device: str) -> dict[int, float]:
    """Give the median seconds of an all-reduce, of the slowest worker, by how many numbers it sums."""
    found = {}
    for size in SIZES:
        numbers = torch.ones(size, device=device)
        times = [_seconds_of_all_reduce(numbers) for _ in range(REPEATS)]
        found[size] = statistics.median(times)
    return found


def _seconds_of_all_reduce(numbers: torch.Tensor) -> float:
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(numbers)
    if numbers.is_cuda:
        torch.cuda.synchronize()
    return max(gathered(time.perf_counter() - start))


def _line(costs: Costs) -> str:
    speeds = "  ".join(f"{way} {speed:,.0f}" for way, speed in costs.images_per_second.items())
    added = f"gradients {costs.gradients_ms.median:+.1f} ms, statistics {costs.statistics_ms.median:+.1f} ms"
    return f"{costs.workers} workers: images/s {speeds}; in a step: {added}"
