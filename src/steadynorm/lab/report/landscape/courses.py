"""What the looks around a network in training say, read back from the record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.records import CellRecord, Record

__all__ = ["ArmCourses", "Course", "Look", "Reach", "TrainedEpoch", "course_of", "courses"]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What was seen behind one step along the gradient; see :class:`steadynorm.lab.probe.Point`."""

    length: float
    """In learning rates, or in norms of the weights."""
    loss: float
    change: float
    smoothness: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look around."""

    step: int
    """Training steps taken before it."""
    loss: float
    gradient_norm: float
    weight_norm: float
    learning_rate: float
    rounding: float
    """NaN where training does not round."""
    rate: tuple[Reach, ...]
    """Steps in learning rates, the shortest first."""
    weights: tuple[Reach, ...]
    """Steps in norms of the weights, the shortest first."""
    layers: dict[str, float]
    """||gradient|| / ||weight|| of each layer."""


@dataclass(frozen=True, kw_only=True)
class TrainedEpoch:
    """The end of an epoch."""

    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Course:
    """One network's training."""

    seed: int
    looks: tuple[Look, ...]
    epochs: tuple[TrainedEpoch, ...]
    diverged_at: int | None


@dataclass(frozen=True, kw_only=True)
class ArmCourses:
    """The measured networks of one arm."""

    arm: str
    courses: tuple[Course, ...]

    @property
    def diverged(self) -> tuple[Course, ...]:
        """Those whose loss stopped being finite."""
        return tuple(course for course in self.courses if course.diverged_at is not None)

    @property
    def val_accuracy(self) -> Spread | None:
        """Behind the last epoch, of those that trained to it."""
        return self._final(lambda epoch: epoch.val_accuracy)

    @property
    def train_loss(self) -> Spread | None:
        """Of the last epoch, likewise."""
        return self._final(lambda epoch: epoch.train_loss)

    def _final(self, value: Callable[[TrainedEpoch], float]) -> Spread | None:
        return spread(value(one.epochs[-1]) for one in self.courses if one.diverged_at is None and one.epochs)


def courses(record: Record) -> tuple[ArmCourses, ...]:
    """Give every arm of the experiment with the networks that are measured."""
    return tuple(
        ArmCourses(
            arm=str(arm),
            courses=tuple(course_of(cell) for cell in record.cells if cell.factors["arm"] == arm and cell.is_measured),
        )
        for arm in record.config["arms"]
    )


def course_of(cell: CellRecord) -> Course:
    """Read a cell back."""
    found: dict[int, dict[str, dict[str, float]]] = {}
    diverged_at = None
    for row in cell.measurements:
        found.setdefault(row.step, {}).setdefault(row.subject, {})[row.quantity] = row.value
        if row.quantity == "diverged":
            diverged_at = row.step
    return Course(
        seed=int(cell.factors["seed"]),
        looks=tuple(_look(step, subjects) for step, subjects in found.items() if "weight_norm" in subjects.get("", {})),
        epochs=tuple(_epoch(step, subjects[""]) for step, subjects in found.items() if _is_epoch(subjects)),
        diverged_at=diverged_at,
    )


def _look(step: int, subjects: dict[str, dict[str, float]]) -> Look:
    own = subjects[""]
    reached = ("rate ", "weights ")
    layers = {name: one for name, one in subjects.items() if name and not name.startswith(reached)}
    return Look(
        step=step,
        loss=own["loss"],
        gradient_norm=own["gradient_norm"],
        weight_norm=own["weight_norm"],
        learning_rate=own["learning_rate"],
        rounding=own.get("rounding", math.nan),
        rate=_reaches(subjects, "rate"),
        weights=_reaches(subjects, "weights"),
        layers={
            name: one["gradient_norm"] / one["weight_norm"] if one["weight_norm"] else math.nan
            for name, one in layers.items()
        },
    )


def _reaches(subjects: dict[str, dict[str, float]], unit: str) -> tuple[Reach, ...]:
    found = [
        Reach(
            length=float(subject.removeprefix(f"{unit} ")),
            loss=values["loss"],
            change=values["change"],
            smoothness=values["smoothness"],
        )
        for subject, values in subjects.items()
        if subject.startswith(f"{unit} ")
    ]
    return tuple(sorted(found, key=lambda reach: reach.length))


def _is_epoch(subjects: dict[str, dict[str, float]]) -> bool:
    return "val_accuracy" in subjects.get("", {})


def _epoch(step: int, values: dict[str, float]) -> TrainedEpoch:
    return TrainedEpoch(
        step=step,
        train_loss=values["train_loss"],
        val_loss=values["val_loss"],
        val_accuracy=values["val_accuracy"],
    )
