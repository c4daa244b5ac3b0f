"""What a copy of a part of the model would be given: the inputs of the part that it is a copy of."""

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
    """Run the copies that the model's forward leaves out, such as target networks, on what their originals are given.

    Their norms normalize by the batch meanwhile, so that no layer is off because one before it is.

    Args:
        model: in evaluation, without gradient.
        twins: its parts that are copies of each other.
        reached: norms that the forward calls.
        batch: that is run.
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
        except Exception as error:  # whatever the model's own code raises
            unread.append(f"{copied}, on what {original} is given: {type(error).__name__}: {error}")
            continue
        found |= {f"{copied}.{name}" if name else copied: tuple(seen) for name, seen in layers.values()}
    return found


def _left_out(twins: Sequence[Twins], reached: Collection[str]) -> Iterator[tuple[str, str]]:
    """Give parts that the forward calls, and their copies that it does not."""
    for pair in twins:
        first, second = (all(names[side] in reached for names in pair.norms) for side in (0, 1))
        neither = [not any(names[side] in reached for names in pair.norms) for side in (0, 1)]
        if first and neither[1]:
            yield pair.first, pair.second
        elif second and neither[0]:
            yield pair.second, pair.first
