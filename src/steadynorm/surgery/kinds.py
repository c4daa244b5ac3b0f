"""Which modules are batch norms, of which kind, and what they are called.

A module is known by its exact class. A subclass that nobody has described may do more than its parent, so it is not
treated as one: whoever rebuilds it as its parent drops its activation, as happened in half of the tools there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from steadynorm import layers
from steadynorm.layers.shell import Shell

__all__ = ["BATCH_NORMS", "KINDS", "Kind", "Norm", "find_kind", "is_batch_norm", "kind_of", "label", "why_unknown"]


Norm = Any
"""A module that is known to have the attributes of a norm."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of layers: one class for each number of spatial dimensions, or one for all.

    Args:
        name: by which :func:`steadynorm.surgery.convert_` knows it.
        classes: number of spatial dimensions (1, 2, 3) -> class; 0 for a class that takes any.
        ours: whether its layers fuse residual and activation, and know the options of ours.
        evaluates_as_batch_norm: whether its evaluation is batch norm's by the running estimates.
        needs_statistics: whether it is nothing without running statistics.
    """

    name: str
    classes: Mapping[int, type[nn.Module]]
    ours: bool = True
    evaluates_as_batch_norm: bool = True
    needs_statistics: bool = False

    def class_for(self, dimensions: int | None) -> type[nn.Module] | None:
        """Give the class for so many spatial dimensions, None where there is none, or none is known."""
        return self.classes.get(0) or self.classes.get(dimensions or -1)


def _ours(prefix: str) -> dict[int, type[nn.Module]]:
    return {dimensions: getattr(layers, f"{prefix}{dimensions}d") for dimensions in (1, 2, 3)}


BATCH_NORMS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="batch_norm", classes=_ours("BatchNorm")),
        Kind(name="batch_renorm", classes=_ours("BatchRenorm"), needs_statistics=True),
        Kind(name="frozen_batch_norm", classes=_ours("FrozenBatchNorm"), needs_statistics=True),
        Kind(
            name="gated_batch_norm",
            classes=_ours("GatedBatchNorm"),
            evaluates_as_batch_norm=False,
            needs_statistics=True,
        ),
        Kind(name="ghost_batch_norm", classes=_ours("GhostBatchNorm")),
        Kind(name="masked_batch_norm", classes={1: layers.MaskedBatchNorm1d}),
        Kind(name="sync_batch_norm", classes={0: layers.SyncBatchNorm}),
        Kind(
            name="torch_batch_norm",
            classes={1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
            ours=False,
        ),
        Kind(name="torch_sync_batch_norm", classes={0: nn.SyncBatchNorm}, ours=False),
    )
}
"""Every kind of batch norm, by name."""
KINDS: dict[str, Kind] = BATCH_NORMS | {
    kind.name: kind
    for kind in (
        Kind(name="group_norm", classes={0: nn.GroupNorm}, ours=False, evaluates_as_batch_norm=False),
        Kind(name="layer_norm", classes={0: nn.LayerNorm}, ours=False, evaluates_as_batch_norm=False),
    )
}
"""Every kind that a batch norm can become, by name."""

_OF_CLASS = {cls: (kind, dimensions) for kind in KINDS.values() for dimensions, cls in kind.classes.items()}


def find_kind(to: str | type[nn.Module]) -> Kind:
    """Look a kind up by its name or by one of its classes.

    Raises:
        ValueError: there is no such kind.
    """
    if isinstance(to, str) and to in KINDS:
        return KINDS[to]
    if isinstance(to, type) and to in _OF_CLASS:
        return _OF_CLASS[to][0]
    raise ValueError(f"convert_: to must be a layer class of torch or ours, or one of {', '.join(KINDS)}; got {to!r}.")


def kind_of(module: nn.Module) -> tuple[Kind, int]:
    """Give a known layer's kind and its number of spatial dimensions, 0 where it takes any."""
    return _OF_CLASS[type(module)]


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether this is a batch norm that surgery knows all about."""
    known = _OF_CLASS.get(type(module))
    return known is not None and known[0].name in BATCH_NORMS and "forward" not in vars(module)


def why_unknown(module: nn.Module) -> str | None:
    """Say why a module that looks like a batch norm is not treated as one; None where it does not look like one."""
    if is_batch_norm(module):
        return None
    if isinstance(module, _LazyNormBase):
        return "it has not seen its first batch, so nobody knows its channels. Run the model once."
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a script, whose forward nobody can look into." if hasattr(module, "running_mean") else None
    looks = isinstance(module, _BatchNorm | Shell)
    if looks and "forward" in vars(module):
        return "its forward has been replaced on the instance, by what nobody knows."
    if looks:
        return "it is a subclass of batch norm that may do more than its parent. Build the layer that it is to become."
    buffers: Any = getattr(module, "_buffers", {})
    if {"running_mean", "running_var"} <= set(buffers) and not isinstance(
        module, nn.modules.instancenorm._InstanceNorm
    ):
        return "it keeps a running mean and variance, but it is no batch norm of torch's or ours."
    return None


def label(module: nn.Module) -> str:
    """Name a module's class and size, so that torch's and ours are told apart: ``torch.nn.BatchNorm2d(64)``."""
    cls = type(module)
    if cls.__module__.startswith("torch.nn."):
        name = f"torch.nn.{cls.__qualname__}"
    elif cls.__module__.startswith("steadynorm."):
        name = f"steadynorm.{cls.__qualname__}"
    else:
        name = f"{cls.__module__}.{cls.__qualname__}"
    size = [str(getattr(module, each)) for each in _SIZES if hasattr(module, each)]
    size += [repr(module.activation)] if isinstance(getattr(module, "activation", None), str) else []
    return f"{name}({', '.join(size)})"


_SIZES = (
    "num_features",
    "num_groups",
    "num_channels",
    "normalized_shape",
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
)
