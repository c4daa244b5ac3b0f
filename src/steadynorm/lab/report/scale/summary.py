"""What was measured of each variant of the recipe at each batch size."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.records import Record, RunRecord

__all__ = ["LAST", "Place", "find_place", "is_finished", "last_epochs", "places", "sizes"]

LAST = 5
"""Epochs at the end whose median is a network's accuracy, as in the paper; of short trainings the last quarter."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One variant at one batch size; spreads are over its seeds."""

    variant: str
    batch_size: int
    lr: float
    """Highest of the training."""
    seeds: int
    """Planned runs."""
    accuracy: Spread | None
    """On the validation images, the median of the last epochs, of the runs that finished."""
    images_per_second: Spread | None
    """In training, the median of a run's epochs."""
    exploded_at_step: tuple[int, ...]
    """Steps at which the loss was no longer finite, one for each run that exploded."""
    waiting: int
    """Runs that have not ended."""


def places(record: Record) -> list[Place]:
    """Summarise every place of the grid, in the order of the configuration."""
    config = record.config
    return [
        _place(record, str(variant), size) for variant, size in itertools.product(config["variants"], sizes(record))
    ]


def sizes(record: Record) -> list[int]:
    """Give the batch sizes, smallest first."""
    return sorted(int(size) for size in record.config["batch_size"])


def find_place(found: list[Place], variant: str, batch_size: int) -> Place | None:
    """Look a place up; None where it was not planned or no run of it has finished."""
    wanted = (variant, batch_size)
    place = next((one for one in found if (one.variant, one.batch_size) == wanted), None)
    return place if place and place.accuracy else None


def is_finished(record: Record) -> bool:
    """Whether every network has ended."""
    return bool(record.runs) and all(run.status in ("finished", "diverged") for run in record.runs)


def last_epochs(record: Record) -> int:
    """Count the epochs whose median is a network's accuracy."""
    return max(1, min(LAST, int(record.config["epochs"]) // 4))


def _place(record: Record, variant: str, batch_size: int) -> Place:
    runs = [run for run in record.runs if (run.spec.variant, run.spec.batch_size) == (variant, batch_size)]
    finished = [run for run in runs if run.status == "finished"]
    return Place(
        variant=variant,
        batch_size=batch_size,
        lr=runs[0].spec.lr if runs else 0.0,
        seeds=len(runs),
        accuracy=spread(_accuracy(run, last_epochs(record)) for run in finished),
        images_per_second=spread(
            statistics.median(epoch.images_per_second for epoch in run.epochs) for run in finished
        ),
        exploded_at_step=tuple(run.diverged_at_step or 0 for run in runs if run.status == "diverged"),
        waiting=sum(run.status in ("waiting", "running") for run in runs),
    )


def _accuracy(run: RunRecord, last: int) -> float:
    return statistics.median(epoch.val_accuracy for epoch in run.epochs[-last:])
