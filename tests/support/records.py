"""Run directories with made-up numbers, in the form that training writes them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.lab.report import build_report
from steadynorm.lab.training import network
from steadynorm.reporting.records import Cell, Measurement, Record, head_of, write_record
from steadynorm.reporting.report import as_json

__all__ = [
    "CELLS",
    "EPOCH",
    "RECORD",
    "check_page",
    "config",
    "example_record",
    "record",
    "rows_of",
    "run",
    "summary_json",
    "with_factors",
    "without_notebook",
]

# Values whose digits, infinities and commas are hard to write and read back.
EPOCH = {
    "learning_rate": 0.1,
    "train_loss": 0.1 + 0.2,
    "train_accuracy": 1 / 3,
    "val_loss": math.inf,
    "val_accuracy": 0.0,
    "grad_norm_mean": 1e-30,
    "grad_norm_p5": 1e-300,
    "grad_norm_p95": 2.5,
    "images_per_second": 1234.5,
    "seconds": 6.5,
}
LAYER = [
    Measurement(subject="conv1, odd", step=1, quantity=f"grad_norm_{name}", value=value)
    for name, value in (("mean", 1.0), ("p5", 0.5), ("p95", 2.0))
]


def rows_of(epoch: int, values: Mapping[str, float]) -> list[Measurement]:
    """The measurements of an epoch."""
    return [Measurement(step=epoch, quantity=name, value=value) for name, value in values.items()]


CELLS = (
    Cell(factors=network(arm="none", seed=0, lr=0.1, epochs=2)),
    Cell(
        factors=network(arm="none", seed=1, lr=0.1, epochs=2),
        status="diverged",
        seconds=7.5,
        measurements=(
            Measurement(quantity="parameters", value=12.0),
            *rows_of(1, EPOCH),
            *LAYER,
            Measurement(step=7, quantity="diverged", value=1.0),
        ),
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
    cells=CELLS,
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


def record(cells: Sequence[Cell], **changes: Any) -> Record:
    """A record around ``cells``; ``changes`` are changes of its configuration."""
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
        cells=tuple(cells),
    )


def run(
    arm: str,
    *,
    val_accuracy: Sequence[float] = (),
    status: str = "finished",
    seed: int = 0,
    lr: float = 0.1,
    purpose: str | None = None,
    diverged_at_step: int | None = None,
    planned: int | None = None,
    change: Callable[[int], dict[str, float]] = lambda epoch: {},
    with_layers: bool = True,
) -> Cell:
    """One network with the given validation accuracies; ``change(epoch)`` replaces other quantities."""
    found = epochs(val_accuracy, lr=lr, arm=arm, change=change)
    rows = [Measurement(quantity="parameters", value=288_170 if arm == "none" else 289_066)] if found else []
    for number, epoch in enumerate(found, start=1):
        rows += rows_of(number, epoch)
        rows += layers(number, epoch["grad_norm_mean"], arm) if with_layers else []
    if status == "diverged":
        rows.append(Measurement(step=diverged_at_step or 1, quantity="diverged", value=1.0))
    return Cell(
        factors=network(arm=arm, seed=seed, lr=lr, epochs=planned or len(found) or 20, purpose=purpose),
        status=status,  # type: ignore[arg-type]
        measurements=tuple(rows),
    )


def with_factors(cell: Cell, **factors: Any) -> Cell:
    """The network with other factors."""
    return replace(cell, factors=network(**(cell.factors | factors)))


def epochs(
    val_accuracy: Sequence[float], *, lr: float, arm: str, change: Callable[[int], dict[str, float]]
) -> list[dict[str, float]]:
    """Epochs whose other quantities follow smoothly from the validation accuracy."""
    found = []
    for number, accuracy in enumerate(val_accuracy, start=1):
        norm = (0.6 if arm == "batch_norm" else 1.4) * (1 + 1 / number)
        epoch = {
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
        found.append(epoch | change(number))
    return found


def layers(epoch: int, norm: float, arm: str) -> list[Measurement]:
    """Gradient norms of each layer: level with batch norm, growing with depth without."""
    found = []
    for depth, name in enumerate(LAYERS):
        mean = norm * (0.3 if arm == "batch_norm" else 0.04 * 1.7**depth)
        for end, times in (("mean", 1.0), ("p5", 0.6), ("p95", 1.8)):
            found.append(Measurement(subject=name, step=epoch, quantity=f"grad_norm_{end}", value=times * mean))
    return found


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
    write_record(directory, made)
    return made


def _planned(arm: str, seed: int, lr: float, count: int, diverged: Sequence[str], waiting: Sequence[str]) -> Cell:
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


def _tuning(arm: str, lr: float, best: float) -> Cell:
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
    write_record(folder, made)
    with without_notebook():
        text = build_report(folder).read_text()
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    text = re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)  # Vega's own, without the figures' data
    assert re.search(r"\bnan\b", text.lower()) is None
    assert summary["experiment"] == made.experiment
    assert ("--resume DIR" in text) == (not summary["finished"])
    return text
