"""Run directories with made-up numbers, in the form that training writes them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.lab.report.build import build_report, head_of
from steadynorm.reporting.records import (
    Epoch,
    LayerGradient,
    Record,
    RunRecord,
    RunSpec,
    write_cells,
    write_config,
    write_tables,
)
from steadynorm.reporting.report import as_json

__all__ = [
    "EPOCH",
    "LAYER",
    "RECORD",
    "RUNS",
    "check_page",
    "config",
    "epochs",
    "example_record",
    "layers",
    "record",
    "run",
    "summary_json",
    "without_notebook",
]

# Rows whose digits, infinities and commas are hard to write and read back.
EPOCH = Epoch(
    epoch=1,
    learning_rate=0.1,
    train_loss=0.1 + 0.2,
    train_accuracy=1 / 3,
    val_loss=math.inf,
    val_accuracy=0.0,
    grad_norm_mean=1e-30,
    grad_norm_p5=1e-300,
    grad_norm_p95=2.5,
    images_per_second=1234.5,
    seconds=6.5,
)
LAYER = LayerGradient(epoch=1, layer="conv1, odd", mean=1.0, p5=0.5, p95=2.0)
RUNS = (
    RunRecord(spec=RunSpec(arm="none", seed=0, lr=0.1, epochs=2)),
    RunRecord(
        spec=RunSpec(arm="none", seed=1, lr=0.1, epochs=2),
        status="diverged",
        diverged_at_step=7,
        parameters=12,
        epochs=(EPOCH,),
        layers=(LAYER,),
    ),
)
RECORD = Record(
    experiment="compare",
    command="steadynorm compare",
    created="2026-01-01T00:00:00+00:00",
    config={"arms": ["none"]},
    resolved={"device": "cpu"},
    versions={"torch": "2"},
    machine={"cores": 2},
    runs=RUNS,
)

CEILING = {"batch_norm": 0.84, "none": 0.79, "layer_norm": 0.80, "group_norm": 0.82}
"""Where each arm's validation accuracy ends up, about; other arms end at 0.75."""

LAYERS = ("features.0", "features.3", "features.7", "features.10", "features.14", "features.17", "classifier")


def config(**changes: Any) -> dict[str, Any]:
    """The article's configuration on CIFAR-10, two arms, one seed."""
    return {
        "arms": ["batch_norm", "none"],
        "seeds": [0],
        "network": "cnn",
        "depth": 6,
        "widths": [32, 64, 128],
        "data": "cifar10",
        "data_dir": "data/cifar10",
        "epochs": 20,
        "batch_size": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "milestones": [10, 15],
        "augment": "crop-flip",
        "precision": "auto",
        "device": "auto",
        "tune_lr": [],
        "quick": False,
    } | changes


def summary_json(record: Record) -> dict[str, Any]:
    """Give what ``summary.json`` would hold."""
    return as_json(head_of(record), EXPERIMENTS[record.experiment].describe(record))


def record(runs: Sequence[RunRecord], **changes: Any) -> Record:
    """A record around ``runs``; ``changes`` are changes of its configuration."""
    return Record(
        experiment="compare",
        command="steadynorm compare --data cifar10",
        created="2025-03-01T12:00:00+00:00",
        config=config(**changes),
        resolved={
            "device": "cpu",
            "precision": "bfloat16",
            "train_images": 50_000,
            "validation_images": 10_000,
            "classes": [
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ],
            "threads": 8,
        },
        versions={"python": "3.11.7", "torch": "2.13.0", "steadynorm": "0.1.0"},
        machine={"processor": "An 8-core processor", "cores": 8, "memory_gib": 31.2, "system": "Linux 6.1"},
        runs=tuple(runs),
    )


def run(
    arm: str,
    *,
    val_accuracy: Sequence[float] = (),
    status: str = "finished",
    seed: int = 0,
    lr: float = 0.1,
    purpose: str = "compare",
    diverged_at_step: int | None = None,
    planned: int | None = None,
    change: Callable[[int], dict[str, float]] = lambda epoch: {},
    with_layers: bool = True,
) -> RunRecord:
    """One run with the given validation accuracies; ``change(epoch)`` replaces other columns."""
    rows = epochs(val_accuracy, lr=lr, arm=arm, change=change)
    return RunRecord(
        spec=RunSpec(arm=arm, seed=seed, lr=lr, epochs=planned or len(rows) or 20, purpose=purpose),  # type: ignore[arg-type]
        status=status,  # type: ignore[arg-type]
        diverged_at_step=diverged_at_step,
        parameters=288_170 if arm == "none" else 289_066,
        epochs=rows,
        layers=layers(rows, arm) if with_layers else (),
    )


def epochs(
    val_accuracy: Sequence[float], *, lr: float, arm: str, change: Callable[[int], dict[str, float]]
) -> tuple[Epoch, ...]:
    """Rows whose other columns follow smoothly from the validation accuracy."""
    rows = []
    for number, accuracy in enumerate(val_accuracy, start=1):
        norm = (0.6 if arm == "batch_norm" else 1.4) * (1 + 1 / number)
        row = {
            "epoch": number,
            "learning_rate": lr * (0.1 ** ((number > 10) + (number > 15))),
            "train_loss": 2.3 * (1 - accuracy) ** 1.2,
            "train_accuracy": min(1.0, accuracy + 0.004 * number - 0.02),
            "val_loss": 2.3 * (1 - accuracy),
            "val_accuracy": accuracy,
            "grad_norm_mean": norm,
            "grad_norm_p5": 0.6 * norm,
            "grad_norm_p95": (1.5 if arm == "batch_norm" else 2.2) * norm,
            "images_per_second": 5200.0 if arm == "batch_norm" else 6100.0,
            "seconds": 10.4 if arm == "batch_norm" else 8.9,
        }
        rows.append(Epoch(**(row | change(number))))
    return tuple(rows)


def layers(rows: Sequence[Epoch], arm: str) -> tuple[LayerGradient, ...]:
    """Gradient norms for each layer: level with batch norm, growing with depth without."""
    found = []
    for row in rows:
        for depth, name in enumerate(LAYERS):
            mean = row.grad_norm_mean * (0.3 if arm == "batch_norm" else 0.04 * 1.7**depth)
            found.append(LayerGradient(epoch=row.epoch, layer=name, mean=mean, p5=0.6 * mean, p95=1.8 * mean))
    return tuple(found)


def learning_curve(arm: str, *, seed: int = 0, count: int = 20, lr: float = 0.1) -> list[float]:
    """Validation accuracies that rise, waver while the rate is high, and jump when it drops."""
    top = CEILING.get(arm, 0.75) - 0.03 * abs(math.log10(lr / 0.1))
    waver = 0.05 if arm == "batch_norm" else 0.02
    values = []
    for number in range(1, count + 1):
        rise = (top - 0.08) - 0.5 * math.exp(-number / 3.2)
        noise = waver * math.sin(1.9 * number + 1.3 * seed) if number <= 10 else 0.0
        step = 0.07 * (number > 10) + 0.01 * (number > 15)
        values.append(rise + noise + step + 0.004 * math.sin(3.0 * seed + number))
    return values


def example_record(
    directory: Path,
    *,
    arms: Sequence[str] = ("batch_norm", "none"),
    seeds: int = 1,
    count: int = 20,
    tune: Sequence[float] = (),
    diverged: Sequence[str] = (),
    waiting: Sequence[str] = (),
    **changes: Any,
) -> Record:
    """Write a run directory and give back what it holds.

    Args:
        directory: is made if absent.
        arms: each trains ``seeds`` networks for ``count`` epochs.
        seeds: number of seeds.
        count: epochs.
        tune: learning rates tried, which also adds runs at each arm's best rate (``none`` likes 0.02).
        diverged: arms whose runs diverge in their fourth epoch.
        waiting: arms whose runs have not started.
        changes: changes of the configuration.
    """
    runs = [_planned(arm, seed, 0.1, count, diverged, waiting) for arm in arms for seed in range(seeds)]
    for arm in arms if tune else ():
        best = 0.02 if arm == "none" else 0.1
        runs += [_tuning(arm, lr, best) for lr in tune]
        runs += [_planned(arm, seed, best, count, (), waiting) for seed in range(seeds) if best != 0.1]
    made = record(runs, arms=list(arms), seeds=list(range(seeds)), epochs=count, tune_lr=list(tune), **changes)
    write_config(directory, made)
    write_tables(directory, made.runs)
    return made


def _planned(arm: str, seed: int, lr: float, count: int, diverged: Sequence[str], waiting: Sequence[str]) -> RunRecord:
    values = learning_curve(arm, seed=seed, count=count, lr=0.1)
    if arm in waiting:
        return run(arm, status="waiting", seed=seed, lr=lr, planned=count)
    if arm in diverged:
        return run(
            arm,
            val_accuracy=values[:3],
            status="diverged",
            seed=seed,
            lr=lr,
            diverged_at_step=1234,
            planned=count,
        )
    return run(arm, val_accuracy=values, seed=seed, lr=lr)


def _tuning(arm: str, lr: float, best: float) -> RunRecord:
    if lr > 4 * best:
        return run(arm, status="diverged", lr=lr, purpose="tune", diverged_at_step=17, planned=3)
    top = CEILING.get(arm, 0.75) - 0.1 - 0.12 * abs(math.log10(lr / best))
    return run(arm, val_accuracy=[top - 0.2, top - 0.1, top], lr=lr, purpose="tune")


@contextlib.contextmanager
def without_notebook() -> Iterator[None]:
    """Build reports whose notebooks are not executed, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steadynorm.reporting.build.execute", lambda notebook, directory: None)
        yield


def check_page(made: Record, folder: Path) -> str:
    """Make page and summary of a record as it lies on disk, and hold them to what every page must be; give its text."""
    write_config(folder, made)
    write_tables(folder, made.runs)
    if made.cells:
        write_cells(folder, made.cells)
    with without_notebook():
        text = build_report(folder).read_text()
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    text = re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)  # Vega's own, without the figures' data
    assert re.search(r"\bnan\b", text.lower()) is None
    assert summary["experiment"] == made.experiment
    assert ("--resume DIR" in text) == (not summary["finished"])
    return text
