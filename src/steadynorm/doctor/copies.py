"""Run copies of parts of the model on the inputs of their originals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.evidence import Twins
from steadynorm.doctor.sightings import watching
from steadynorm.doctor.untouched import uncompiled
from steadynorm.surgery.batches import Forward
from steadynorm.surgery.contexts import use_batch_statistics
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["look_at_copies"]


def look_at_copies(
    model: nn.Module,
    twins: Sequence[Twins],
    reached: Collection[str],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
    unread: list[str],
) -> dict[str, tuple[Sighting, ...]]:
    """Run the copies that the model's forward does not call, such as target networks, on their originals' inputs.

    Their norms use batch statistics meanwhile, so that no layer is off because an earlier one is.

    Args:
        model: in evaluation, without gradient.
        twins: its parts that are copies of each other.
        reached: norms that the forward calls.
        batch: the batch to run.
        forward: runs the model on it.
        unread: takes a line on what could not be run.

    Returns:
        name of a norm -> what it is given.
    """
    found: dict[str, tuple[Sighting, ...]] = {}
    for original, copied in _left_out(twins, reached):
        part, copy = model.get_submodule(original), model.get_submodule(copied)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handle = part.register_forward_pre_hook(
            lambda _, arguments, named, calls=calls: calls.append((arguments, named)), with_kwargs=True
        )
        try:
            with uncompiled():
                forward(model, batch)
        finally:
            handle.remove()
        layers = {named.module: (named.name, list[Sighting]()) for named in batch_norms_of(copy)}
        try:
            with uncompiled(), use_batch_statistics(copy), watching({each: layers[each][1] for each in layers}, 0):
                for arguments, named in calls[:1]:
                    copy(*arguments, **named)
        except Exception as error:  # the model's own code may raise anything
            unread.append(f"{copied}, on what {original} is given: {type(error).__name__}: {error}")
            continue
        found |= {f"{copied}.{name}" if name else copied: tuple(seen) for name, seen in layers.values()}
    return found


def _left_out(twins: Sequence[Twins], reached: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield parts that the forward calls, each with a copy that it does not call."""
    for pair in twins:
        first, second = (all(names[side] in reached for names in pair.norms) for side in (0, 1))
        neither = [not any(names[side] in reached for names in pair.norms) for side in (0, 1)]
        if first and neither[1]:
            yield pair.first, pair.second
        elif second and neither[0]:
            yield pair.second, pair.first
