"""Train on more and more workers and tell what their agreement costs: of gradients, and of batch statistics.

Question: how many images per second do N workers train together, and what do the all-reduce of the gradients and the
two collectives of every synchronised batch norm add to a step?

Expected: on one machine workers share its cores, so N workers of one thread are as fast as N cores; each collective
costs a fixed time and little for its size, because statistics are 2C + 1 numbers a layer.

Cost: some ten seconds for each number of workers, most of it for starting them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from steadynorm.bench.benchmark import Benchmark, Flags
from steadynorm.bench.providers import build_network, draw_images, train_step
from steadynorm.bench.record import Json
from steadynorm.bench.table import show
from steadynorm.bench.timing import Mark, Provider, Sample, quantiles, time_providers
from steadynorm.lab.machine import Precision, choose_precision
from steadynorm.lab.workers import average_gradients_, gathered, joined, number_of_workers
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table

__all__ = ["BENCHMARK", "WorkersFlags", "fit"]

PROVIDERS: dict[str, tuple[str, bool]] = {  # name -> norm, whether gradients are averaged
    "apart": ("batch_norm", False),
    "gradients": ("batch_norm", True),
    "synchronised": ("sync_batch_norm", True),
}
SIZES = tuple(4**power for power in range(3, 12))  # numbers in an all-reduce: 64 to 4 million, 256 bytes to 16 MB
REPEATS = 9  # calls of an all-reduce of each size
STEPS = 4  # steps of each provider in a round
LEAST_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class WorkersFlags(Flags):
    """Time training steps on several workers of this machine: apart, with gradients averaged, and synchronised.

    Every worker has its own batch, so more workers train larger batches.
    """

    network: Literal["cnn", "resnet20"] = "cnn"
    """Network of steadynorm compare."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers; all on this machine, each with --threads."""
    batch: int = 32
    """Images on each worker."""
    threads: int = 1
    """Threads of each worker."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast if the hardware multiplies bfloat16 matrices."""
    seconds: float = 5.0
    """Seconds for the steps of each number of workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is a GPU; then each worker has its own."""


def _plan(config: WorkersFlags, head: Json, display: Display) -> Sequence[int]:
    """Return the numbers of workers, and report the size of the network."""
    model = build_network(config.network, "sync_batch_norm", torch.device("cpu"))
    head["precision"] = choose_precision(config.precision, torch.device(head["device"]))
    head["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    head["norms"] = sum(type(module).__name__ == "SyncBatchNorm" for module in model.modules())
    return config.workers


def _measure(case: int, config: WorkersFlags, head: Json) -> Json:
    """Start the workers, as torchrun does, and collect their results."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=case,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    ms, sizes = elastic_launch(launch, _work)(config, head["device"], head["precision"])[0]
    return {
        "workers": case,
        "step_ms": {name: quantiles(each) for name, each in ms.items()},
        "images_per_second": {name: 1e3 * config.batch * case / statistics.median(each) for name, each in ms.items()},
        "gradients_ms": quantiles(differences(ms["gradients"], ms["apart"])),
        "statistics_ms": quantiles(differences(ms["synchronised"], ms["gradients"])),
        "all_reduce": fit([4 * size for size in sizes], list(sizes.values())) if sizes else None,
    }


def _lines(row: Json) -> list[str]:
    """Show images per second, and the cost of each collective in a step."""
    speeds = "  ".join(f"{name} {speed:,.0f}" for name, speed in row["images_per_second"].items())
    added = ", ".join(f"{what} {row[f'{what}_ms']['median']:+.1f} ms" for what in ("gradients", "statistics"))
    return [f"{row['workers']} workers: images/s {speeds}; in a step: {added}"]


def _closing(record: Json) -> list[str]:
    """Show the speed per worker, relative to the first number of workers."""
    lines, first = [], record["costs"][0]
    for row in record["costs"]:
        speed, alone = (one["images_per_second"]["synchronised"] for one in (row, first))
        share = (speed / row["workers"]) / (alone / first["workers"])
        each = f"{100 * share:.0f} % of the first's for each"
        lines.append(f"{row['workers']} workers: {speed:,.0f} images/s synchronised, {each}")
    return lines


def _table(record: Json) -> tuple[str, Table]:
    columns = {
        "workers": show("workers"),
        "images/s apart": show("images_per_second.apart", ",.0f"),
        "gradients averaged": show("images_per_second.gradients", ",.0f"),
        "synchronised": show("images_per_second.synchronised", ",.0f"),
        "gradients, ms a step": lambda row: _range(row["gradients_ms"]),
        "statistics": lambda row: _range(row["statistics_ms"]),
    }
    config = record["config"]
    what = f"{config['network']}, {config['batch']} images on each worker, {record['precision']}"
    return f"{what}; median (p20 to p80)", Table.of(record["costs"], columns)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Json:
    """Fit latency + bytes / bandwidth to times, so that the relative errors are least; neither below zero.

    Args:
        sizes: bytes.
        seconds: positive time for each size.

    Returns:
        ``latency`` in seconds, and ``bandwidth`` in bytes per second: infinite if the size makes no difference.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    columns = np.stack([1 / y, x / y], 1)
    latency, per_byte = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
    if per_byte <= 0:
        return {"latency": float(np.exp(np.log(y).mean())), "bandwidth": float("inf")}
    if latency <= 0:
        per_byte = float((columns[:, 1] @ np.ones_like(y)) / (columns[:, 1] @ columns[:, 1]))
        return {"latency": 0.0, "bandwidth": 1 / per_byte}
    return {"latency": float(latency), "bandwidth": float(1 / per_byte)}


def differences(more: Sequence[float], less: Sequence[float]) -> list[float]:
    """Pair the rounds, in which both providers ran one after the other."""
    return [one - other for one, other in zip(more, less, strict=True)]


def _clock(provider: Provider) -> list[Sample]:
    ms = _slowest(provider, repeats=STEPS) * 1e3
    return [Sample(parts_ms=(ms,), host_ms=ms)]


def _work(config: WorkersFlags, device: str, precision: Precision) -> tuple[dict[str, list[float]], dict[int, float]]:
    """Run one worker; return milliseconds of a step by provider and round, and seconds by size of all-reduce."""
    torch.set_num_threads(config.threads)
    with joined():
        x, labels = draw_images(config.batch, torch.device(device))
        steps = {
            name: train_step(
                build_network(config.network, norm, x.device),
                x,
                labels,
                precision,
                average_gradients_ if averages else lambda model: None,
            )
            for name, (norm, averages) in PROVIDERS.items()
        }
        samples = time_providers(
            steps,
            _clock,
            seconds=config.seconds,
            least_rounds=LEAST_ROUNDS,
            decide=lambda more: max(gathered(more)),
        )
        all_reduces = _all_reduces(device) if number_of_workers() > 1 else {}
        return {name: [sample.total_ms for sample in taken] for name, taken in samples.items()}, all_reduces


def _all_reduces(device: str) -> dict[int, float]:
    """Return the median seconds of an all-reduce by number of values."""
    found = {}
    for size in SIZES:
        numbers = torch.ones(size, device=device)
        found[size] = statistics.median(_slowest(partial(_all_reduce, numbers)) for _ in range(REPEATS))
    return found


def _all_reduce(numbers: torch.Tensor, mark: Mark) -> None:
    dist.all_reduce(numbers)


def _slowest(provider: Provider, *, repeats: int = 1) -> float:
    """Return the seconds per call of the slowest worker, averaged over calls that all workers start together."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        provider(lambda: None)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return max(gathered((time.perf_counter() - start) / repeats))


def _range(ms: Json) -> str:
    return f"{ms['median']:.1f} ({ms['p20']:.1f} to {ms['p80']:.1f})"


BENCHMARK = Benchmark(
    name="workers",
    flags=WorkersFlags,
    rows="costs",
    plan=_plan,
    label=lambda count: f"{count} worker{'' if count == 1 else 's'}",
    measure=_measure,
    lines=_lines,
    closing=_closing,
    table=_table,
)
"""A row has one number of workers; times are of the slowest worker of each round, in milliseconds.

    ``gradients_ms`` is what averaging the gradients adds to a step, ``statistics_ms`` what synchronising the statistics
    adds to that; ``all_reduce`` is fitted to all-reduces of 256 bytes to 16 MB, None for one worker."""
