"""The list of foreign norms: for each class which norm it is, and what it does after the norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["Adapter", "Like", "Tail", "adapter_for", "named_children", "register", "register_name"]

Like = Literal["batch_norm", "sync_batch_norm", "frozen_batch_norm"]
Tail = Callable[[Any], Mapping[str, nn.Module]]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a foreign norm computes: tail( norm(x) ).

    Args:
        like: which norm it is.
        dimensions: spatial dimensions of its input; 0 for a class that takes any.
        tail: module -> the modules that run after the norm, by name and in their order.
        eps: attribute that holds it, or the number where the class keeps it in its code.
        absolute_weight: whether it multiplies by |weight| + eps in place of weight.
    """

    like: Like
    dimensions: int
    tail: Tail
    eps: str | float = "eps"
    absolute_weight: bool = False


_CLASSES: dict[type[nn.Module], Adapter] = {}
_NAMES: dict[str, Adapter] = {}
_FOUND: WeakKeyDictionary[type[nn.Module], Adapter | None] = WeakKeyDictionary()
"""What has been looked up."""


def register(
    cls: type[nn.Module],
    *,
    like: Like = "batch_norm",
    dimensions: Literal[0, 1, 2, 3] = 2,
    tail: Sequence[str] | Tail = (),
    eps: str | float = "eps",
    absolute_weight: bool = False,
) -> None:
    """Tell surgery what a norm of another package, or of your own, computes; every verb then takes it.

        y = tail( (x − mean) / √(var + eps) · weight + bias )

    The class has torch's attributes ``running_mean``, ``running_var``, ``weight``, ``bias`` (each a parameter, a buffer
    or None). Before an instance is believed, one forward of a copy of it is compared with this equation (``like``
    "frozen_batch_norm": also in training); a class that differs is refused by name.

    Args:
        cls: the class. Subclasses that override nothing count as it.
        like: ``batch_norm`` trains by its batch, as torch's does; ``sync_batch_norm`` over all processes;
            ``frozen_batch_norm`` normalizes by its running statistics in either mode.
        dimensions: spatial dimensions of the input (2 for (N, C, H, W)); 0 takes any.
        tail: what runs after the norm: names of submodules in their order, or a function of the module that gives
            them by name. Verbs that exchange the norm keep these modules.
        eps: attribute that holds it, or the number.
        absolute_weight: whether |weight| + eps stands in place of weight.

    Raises:
        TypeError: not a class of modules.
        ValueError: unknown ``like`` or ``dimensions``.

    >>> class NormAct(nn.BatchNorm2d):
    ...     def __init__(self, channels):
    ...         super().__init__(channels)
    ...         self.act = nn.GELU()
    ...     def forward(self, x):
    ...         return self.act(super().forward(x))
    >>> register(NormAct, tail=["act"])
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register: cls must be a subclass of nn.Module, got {cls!r}.")
    _CLASSES[cls] = _checked(like, dimensions, tail, eps, absolute_weight)
    _FOUND.clear()


def register_name(
    pattern: str,
    *,
    like: Like = "batch_norm",
    dimensions: int = 2,
    tail: Sequence[str] | Tail = (),
    eps: str | float = "eps",
    absolute_weight: bool = False,
) -> None:
    """Do as :func:`register` for classes by qualified name, ``*`` for any part, so that none of them is imported."""
    _NAMES[pattern] = _checked(like, dimensions, tail, eps, absolute_weight)
    _FOUND.clear()


def adapter_for(cls: type[nn.Module]) -> Adapter | None:
    """Give the adapter of exactly this class, None where there is none."""
    if cls not in _FOUND:
        _FOUND[cls] = _CLASSES.get(cls) or _by_name(cls)
    return _FOUND[cls]


def _by_name(cls: type[nn.Module]) -> Adapter | None:
    name = f"{cls.__module__}.{cls.__qualname__}"
    return next((adapter for pattern, adapter in _NAMES.items() if fnmatchcase(name, pattern)), None)


def named_children(names: Sequence[str]) -> Tail:
    """Let submodules be the tail, as far as a module has them."""
    return lambda module: {name: module._modules[name] for name in names if module._modules.get(name) is not None}


def _checked(
    like: Like, dimensions: int, tail: Sequence[str] | Tail, eps: str | float, absolute_weight: bool
) -> Adapter:
    if like not in get_args(Like):
        raise ValueError(f"register: like must be one of {', '.join(get_args(Like))}, got {like!r}.")
    if dimensions not in (0, 1, 2, 3):
        raise ValueError(f"register: dimensions must be 0 (any), 1, 2 or 3, got {dimensions!r}.")
    return Adapter(
        like=like,
        dimensions=dimensions,
        tail=tail if callable(tail) else named_children(tuple(tail)),
        eps=eps,
        absolute_weight=absolute_weight,
    )
