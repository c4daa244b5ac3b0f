"""What a batch costs by each method, in forwards: ``python -m benchmarks.adaptation.cost``.

Rounds of all methods by turns, on the same batches, so that a busy machine slows all alike; each ratio is the median
over rounds of a method's time over that of the stored statistics.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from benchmarks.adaptation.networks import NETWORKS, load_split, trained
from steadynorm.adaptation import (
    Adaptation,
    BatchStatistics,
    Calibration,
    Exponential,
    Gate,
    StoredStatistics,
    calibrate,
)
from steadynorm.lab.data import take
from steadynorm.lab.data.corruptions import corrupt
from steadynorm.reporting.environment import describe_machine, describe_versions

METHODS: Mapping[str, Callable[[Calibration], Adaptation]] = {
    "stored": lambda known: StoredStatistics(),
    "batch": lambda known: BatchStatistics(),
    "ema_0.9": lambda known: Exponential(0.9),
    "gate, both paths always": lambda known: Gate(known, every=1),
    "gate": lambda known: Gate(known),
}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure what a batch costs."""

    out: Path = Path("runs/adaptation-bench")
    """Folder of the networks, as for the benchmark, and for the record."""
    data_dir: Path | None = None
    """Folder of CIFAR-10."""
    networks: tuple[str, ...] = ("wide resnet on cifar10", "inception on cifar10")
    """Of the benchmark; of seed 0."""
    batch: int = 100
    """Images that come together."""
    rounds: int = 24
    """Batches that are measured, after as many that are not."""


def main(flags: Flags) -> None:
    """Measure, print a table and write the record."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [row for name in flags.networks for row in _network(name, flags)]
    head = {"format": 1, "machine": describe_machine(torch.device("cpu")), "versions": describe_versions()}
    (flags.out / "cost.json").write_text(json.dumps({**head, "batch": flags.batch, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def _network(name: str, flags: Flags) -> list[dict[str, Any]]:
    network = NETWORKS[name]
    split = load_split(network.source, flags.data_dir)
    model = trained(network, 0, split, flags.out / "networks")
    clean = split.inputs(split.calibration).split(100)
    calibration = calibrate(model, list(zip(clean, split.calibration.labels.split(100), strict=True)), mirrors=False)
    count = 2 * flags.rounds * flags.batch
    images = take(split.test, torch.arange(count) % len(split.test))
    found = []
    for shift in ("clean", "fog"):
        x = split.inputs(images if shift == "clean" else corrupt(images, shift, severity=5, seed=0))
        for method, (ratio, forwards) in _measured(model, calibration, x.split(flags.batch)).items():
            found.append({"network": name, "stream": shift, "method": method, "ratio": ratio, "forwards": forwards})
    return found


def _measured(
    model: nn.Module, calibration: Calibration, batches: tuple[Tensor, ...]
) -> dict[str, tuple[float, float]]:
    """Return time and forwards for each batch, both in units of those of the stored statistics."""
    methods = {name: make(calibration) for name, make in METHODS.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    runs = dict.fromkeys(methods, 0)
    for number, x in enumerate(batches):
        for name, method in methods.items():
            calls: list[None] = []
            hook = model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
            started = time.perf_counter()
            method.predict(model, x)
            seconds = time.perf_counter() - started
            hook.remove()
            if number >= len(batches) // 2:
                times[name].append(seconds)
                runs[name] += len(calls)
    stored = times["stored"]
    return {
        name: (
            statistics.median(one / other for one, other in zip(each, stored, strict=True)),
            runs[name] / len(each),
        )
        for name, each in times.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the costs in Markdown: time in forwards, and forwards."""
    columns = list(dict.fromkeys((row["network"], row["stream"]) for row in rows))
    of = {(row["method"], row["network"], row["stream"]): row for row in rows}
    head = f"| a batch costs | {' | '.join(f'{network}, {stream}' for network, stream in columns)} |"
    lines = [head, f"|---|{'---|' * len(columns)}"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [of[method, network, stream] for network, stream in columns]
        told = (f"{one['ratio']:.2f} ({one['forwards']:.2f})" for one in cells)
        lines.append(f"| {method} | {' | '.join(told)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Flags))
