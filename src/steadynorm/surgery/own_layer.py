"""A layer of a class that surgery does not know, with the state that it shares with a batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from steadynorm.layers.state import normal_tensors
from steadynorm.surgery.kinds import channels_of
from steadynorm.surgery.rebuild import move_state

__all__ = ["name_of", "own_layer"]


def own_layer(make: Callable[..., nn.Module], old: nn.Module, options: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """Build a layer on a batch norm's device, with its parameters and buffers of the same names and shapes.

    Args:
        make: called with the number of channels and the options.
        old: the batch norm, in a known form.
        options: keyword arguments.

    Returns:
        the layer, and a note on the state of the batch norm that it does not have.

    Raises:
        TypeError: ``make`` raised an exception, or did not return a layer.
    """
    new = _made(make, channels_of(old), options)
    like = next((each for each in (*old.parameters(), *old.buffers()) if each.is_floating_point()), None)
    if like is not None:
        new.to(like.device, like.dtype)
    with normal_tensors():
        move_state(old, new, is_known=False)
    return new, _lost(old, new)


def _made(make: Callable[..., nn.Module], channels: int, options: dict[str, Any]) -> nn.Module:
    """Build a layer of a class that surgery does not know."""
    settings = "".join(f", {name}={value!r}" for name, value in options.items())
    call = f"convert_: {name_of(make)}({channels}{settings}) must return a layer"
    try:
        new = make(channels, **options)
    except Exception as error:
        raise TypeError(f"{call}, but it raised {type(error).__name__}: {error}") from error
    if not isinstance(new, nn.Module):
        raise TypeError(f"{call}, but it returned {type(new).__name__}.")
    return new


def _lost(old: nn.Module, new: nn.Module) -> list[str]:
    """Name the state of a batch norm that another layer does not have."""
    state, kept = {**old._parameters, **old._buffers}, {**new._parameters, **new._buffers}
    lost = [name for name in ("weight", "bias") if state.get(name) is not None and kept.get(name) is not state[name]]
    if state.get("running_mean") is not None and kept.get("running_mean") is not state["running_mean"]:
        lost.append("running statistics")
    *first, last = lost or [""]
    names = f"{', '.join(first)} and {last}" if first else last
    return [f"{names} are dropped: it has none of these names and shapes"] if lost else []


def name_of(to: object) -> str:
    """Name a kind, a class or a function in messages."""
    return to if isinstance(to, str) else getattr(to, "__name__", type(to).__name__)
