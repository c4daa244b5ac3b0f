"""Check that a model holds values: parts on the meta device have none, and lazy ones do not even have a shape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import nn
from torch.nn.parameter import is_lazy

from steadynorm.surgery.kinds import Norm

__all__ = ["check_runnable", "why_not_readable"]

_LISTED = 3


def check_runnable(verb: str, model: nn.Module) -> None:
    """Raise ValueError for a model that cannot run yet, or that would create its parameters in a run.

    Args:
        verb: name of the operation, for the message.
        model: the root.
    """
    for what, names, remedy in (
        ("uninitialized parameters", _lazy(model), "Run the model on a batch"),
        ("tensors on the meta device", _meta(model), "Load the weights"),
    ):
        found = list(names)
        if found:
            first = ", ".join(map(repr, found[:_LISTED])) + (", ..." if len(found) > _LISTED else "")
            raise ValueError(
                f"{verb}: the model must hold numbers to be run, got {what} ({len(found)}): {first}. {remedy} first."
            )


def why_not_readable(module: Norm) -> str | None:
    """Say why a norm's running statistics cannot be read; None if they can."""
    if module.running_mean is None or module.running_var is None:
        return "it has no running statistics."
    if module.running_mean.is_meta or module.running_var.is_meta:
        return "its running statistics are on the meta device, which holds no numbers. Load the weights first."
    return None


def _lazy(model: nn.Module) -> Iterator[str]:
    return (name for name, each in chain(model.named_parameters(), model.named_buffers()) if is_lazy(each))


def _meta(model: nn.Module) -> Iterator[str]:
    return (name for name, each in chain(model.named_parameters(), model.named_buffers()) if each.is_meta)
