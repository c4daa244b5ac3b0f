"""Registry of norms from other packages: which norm each class is, and what it applies afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["Adapter", "Like", "Tail", "adapter_for", "named_children", "register", "register_name"]

Like = Literal["batch_norm", "sync_batch_norm", "frozen_batch_norm"]
"""How a norm of another package trains: by batch statistics, by those of all processes, or by running statistics."""
Tail = Callable[[Any], Mapping[str, nn.Module]]
"""Module -> the modules that run after its norm, by name and in order."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a foreign norm computes: tail( norm(x) ).

    Args:
        like: the kind of norm that it is.
        dimensions: spatial dimensions of its input; 0 for a class that takes any.
        tail: module -> the modules that run after the norm, by name and in their order.
        eps: attribute that holds it, or the value if the class hard-codes it.
        absolute_weight: whether it multiplies by |weight| + eps instead of weight.
    """

    like: Like
    dimensions: int
    tail: Tail
    eps: str | float = "eps"
    absolute_weight: bool = False


_CLASSES: dict[type[nn.Module], Adapter] = {}
_NAMES: dict[str, Adapter] = {}
_FOUND: WeakKeyDictionary[type[nn.Module], Adapter | None] = WeakKeyDictionary()
"""Cache of lookups."""


def register(
    cls: type[nn.Module],
    *,
    like: Like = "batch_norm",
    dimensions: Literal[0, 1, 2, 3] = 2,
    tail: Sequence[str] | Tail = (),
    eps: str | float = "eps",
    absolute_weight: bool = False,
) -> None:
    r"""Register a norm class of another package or of your own, so that every operation accepts it.

    $$
    y = \mathrm{tail}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias}\right)
    $$

    The class must have torch's attributes ``running_mean``, ``running_var``, ``weight`` and ``bias``, each a parameter,
    a buffer or None. The first instance is checked: a copy of it must match this equation in evaluation (for
    ``like="frozen_batch_norm"`` also in training). A class that does not match is refused by name.

    Args:
        cls: the class; subclasses that override nothing are included.
        like: how it trains. ``"batch_norm"`` uses batch statistics, ``"sync_batch_norm"`` those of all processes,
            ``"frozen_batch_norm"`` running statistics.
        dimensions: spatial dimensions of the input, 2 for (N, C, H, W); 0 for any.
        tail: what runs after the norm: names of submodules in order, or a function that maps the module to a dict of
            modules. Operations that replace the norm keep these modules.
        eps: name of the attribute, or the value.
        absolute_weight: whether the class uses |weight| + eps instead of weight.

    Raises:
        TypeError: ``cls`` is not a module class.
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
    """Register classes by qualified name, ``*`` for any part, without importing them; see :func:`register`."""
    _NAMES[pattern] = _checked(like, dimensions, tail, eps, absolute_weight)
    _FOUND.clear()


def adapter_for(cls: type[nn.Module]) -> Adapter | None:
    """Return the adapter of exactly this class; None if there is none."""
    if cls not in _FOUND:
        _FOUND[cls] = _CLASSES.get(cls) or _by_name(cls)
    return _FOUND[cls]


def _by_name(cls: type[nn.Module]) -> Adapter | None:
    name = f"{cls.__module__}.{cls.__qualname__}"
    return next((adapter for pattern, adapter in _NAMES.items() if fnmatchcase(name, pattern)), None)


def named_children(names: Sequence[str]) -> Tail:
    """Return a tail of the named submodules that a module has."""
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
