"""The faults of the benchmark, and the registry that their decorators fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.doctor.architectures.registry import Half
from benchmarks.doctor.subject import Case, Subject
from benchmarks.doctor.training import fit_

__all__ = [
    "BATCH",
    "FAR",
    "FAULTS",
    "GAP",
    "Batches",
    "Fault",
    "Inject",
    "case",
    "fed",
    "held_out",
    "trained_on",
    "tuning",
]

Batches = list[tuple[Tensor, Tensor]]
Inject = Callable[[Subject], Case | None]
GAP = frozenset({"train-eval-gap", "needs-recalibration"})
"""Checks that measure that statistics do not fit, for any reason."""
FAR = GAP | {"outlier-statistics"}
"""The same, where single channels may be far off as well."""
BATCH = frozenset({"batch-dependence", "statistics-moved-in-eval", "mixed-modes"})
"""Checks that measure that a layer in an evaluating model normalizes by the batch."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault.

    Args:
        name: in tables.
        half: whether thresholds may be chosen on it.
        inject: changes the subject; None if the network has no place for the fault.
        causes: checks; one of them must find it.
        consequences: other checks that may report, because the fault causes what they look at.
        repairable: whether a treatment can restore the accuracy with batches of data alone.
        damages: whether it changes weights, so that new statistics restore only a part.
        costs: whether it is a fault by its cost alone, and so counts only if accuracy is two points below what can be
            restored. The others are wrong at any cost.
    """

    name: str
    half: Half
    inject: Inject
    causes: frozenset[str]
    consequences: frozenset[str]
    repairable: bool
    damages: bool
    costs: bool


FAULTS: dict[str, Fault] = {}


def _register(
    half: Half, causes: tuple[str, ...], consequences: frozenset[str], *, repairable: bool, damages: bool, costs: bool
) -> Callable[[Inject], Inject]:
    def register(inject: Inject) -> Inject:
        name = inject.__name__.removeprefix("_").replace("_", " ")
        if name in FAULTS:
            raise ValueError(f"benchmarks.doctor.faults: names must differ, got {name!r} twice.")
        FAULTS[name] = Fault(
            name=name,
            half=half,
            inject=inject,
            causes=frozenset(causes),
            consequences=consequences,
            repairable=repairable,
            damages=damages,
            costs=costs,
        )
        return inject

    return register


def tuning(
    *causes: str,
    consequences: frozenset[str] = frozenset(),
    repairable: bool = False,
    damages: bool = False,
    costs: bool = False,
) -> Callable[[Inject], Inject]:
    """Enter a fault into the tuning half; the arguments are those of :class:`Fault`."""
    return _register("tuning", causes, consequences, repairable=repairable, damages=damages, costs=costs)


def held_out(
    *causes: str,
    consequences: frozenset[str] = frozenset(),
    repairable: bool = False,
    damages: bool = False,
    costs: bool = False,
) -> Callable[[Inject], Inject]:
    """Enter a fault into the held-out half; the arguments are those of :class:`Fault`."""
    return _register("held out", causes, consequences, repairable=repairable, damages=damages, costs=costs)


def case(subject: Subject, *layers: str, **options: object) -> Case:
    """Give the subject's model with batches of its validation data."""
    return Case(
        model=subject.model,
        batches=subject.data.batches(),
        layers=frozenset(layers) or None,
        options=options,
    )


def trained_on(subject: Subject, made: Batches, shown: Batches, rate: float = 0.2) -> Case:
    """Fine-tune on batches, and give the model in training, with batches of the same kind."""
    fit_(subject.model, made, rate=rate * subject.rate)
    return Case(model=subject.model.train(), batches=shown)


def fed(subject: Subject, feed: Callable[[Tensor], Tensor]) -> Case:
    """Give the model other inputs than it was trained on, with training batches as reference."""
    return Case(
        model=subject.model,
        batches=[(feed(x), labels) for x, labels in subject.data.batches()],
        options={"reference": subject.data.batches(of="train")},
        feed=feed,
    )
