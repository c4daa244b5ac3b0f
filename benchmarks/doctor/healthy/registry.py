"""What a healthy variant is, and the list that each one enters by its decorator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.doctor.architectures.registry import Half
from benchmarks.doctor.subject import Case, Subject, norms_of

__all__ = ["HEALTHY", "Variant", "as_it_is", "both", "held_out", "in_training", "norms_evaluate_"]

Make = Callable[[Subject], Case | None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A healthy network.

    Args:
        name: in tables.
        halves: whose networks it is made of.
        make: changes the subject; None where the network cannot be changed so.
    """

    name: str
    halves: tuple[Half, ...]
    make: Make


HEALTHY: dict[str, Variant] = {}


def _register(make: Make, *halves: Half) -> Make:
    name = make.__name__.removeprefix("_").replace("_", " ")
    if name in HEALTHY:
        raise ValueError(f"benchmarks.doctor.healthy: names must differ, got {name!r} twice.")
    HEALTHY[name] = Variant(name=name, halves=halves, make=make)
    return make


def both(make: Make) -> Make:
    """Enter a variant into both halves."""
    return _register(make, "tuning", "held out")


def held_out(make: Make) -> Make:
    """Enter a variant into the held-out half."""
    return _register(make, "held out")


def as_it_is(subject: Subject, size: int = 64) -> Case:
    """Give the subject's model with batches of its validation data."""
    return Case(model=subject.model, batches=subject.data.batches(size))


def in_training(subject: Subject, size: int = 64) -> Case:
    """Give it in training mode."""
    subject.model.train()
    return as_it_is(subject, size)


def norms_evaluate_(subject: Subject) -> None:
    """Set the subject's model to training, and its norms to evaluation."""
    subject.model.train()
    for _, norm in norms_of(subject.model):
        norm.eval()
