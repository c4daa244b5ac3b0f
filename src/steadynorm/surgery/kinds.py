"""Recognize batch norms, their kinds and their labels.

A module counts as a listed class if it is of exactly this class, or of a subclass that overrides nothing that its
forward uses. A foreign class counts as its adapter says. Any other class that looks like a batch norm is refused by
name: it may compute more, such as an activation, and would lose that when rebuilt as its parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from steadynorm.layers.base import BatchNormBase
from steadynorm.layers.kinds import BATCH_NORMS, KINDS, Kind
from steadynorm.surgery.adapters.builtin import register_builtin
from steadynorm.surgery.adapters.probe import disagreement
from steadynorm.surgery.adapters.registry import Adapter, adapter_for

__all__ = [
    "Evaluation",
    "Norm",
    "adapter_of",
    "channels_of",
    "eps_of",
    "evaluation_of",
    "find_kind",
    "is_batch_norm",
    "is_exact",
    "kind_of",
    "label",
    "listed_class",
    "overridden",
    "stored_names",
    "why_unknown",
]


Norm = Any
"""A module that is known to have the attributes of a norm."""


_OF_CLASS = {cls: (kind, dimensions) for kind in KINDS.values() for dimensions, cls in kind.classes.items()}
_FOREIGN = {
    like: replace(BATCH_NORMS[name], classes={})
    for like, name in (
        ("batch_norm", "torch_batch_norm"),
        ("sync_batch_norm", "torch_sync_batch_norm"),
        ("frozen_batch_norm", "frozen_batch_norm"),
    )
}
"""The kinds of foreign norms: with the names of the kinds that they resemble, but without their classes."""
_HARMLESS = {
    *("__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__doc__", "__init__"),
    *("__constants__", "__dict__", "__firstlineno__", "__module__", "__parameters__", "__qualname__", "__repr__"),
    *("__static_attributes__", "__weakref__", "_version", "extra_repr", "reset_parameters"),
}
"""Names that a subclass may define and still be rebuilt as its parent."""
_BESIDE_FORWARD = {
    *("__deepcopy__", "__getstate__", "__reduce__", "__setstate__", "_apply", "_check_input_dim", "eval"),
    *("_check_non_zero_input_channels", "_load_from_state_dict", "_save_to_state_dict", "load_state_dict"),
    *("requires_grad_", "reset_running_stats", "state_dict", "train"),
}
"""Names that a subclass may override and still compute the same function of the same statistics as its parent."""
_STATE = {
    *("affine", "bias", "eps", "momentum", "num_batches_tracked", "num_features", "running_mean", "running_var"),
    *("track_running_stats", "training", "weight"),
}
"""Instance attributes; a class that defines one returns another value than the stored one."""

register_builtin()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The values that a batch norm uses in evaluation: y = (x − mean) / √(var + eps) · weight + bias.

    Args:
        mean: shape (C,); None together with var if it uses batch statistics.
        var: shape (C,), or None.
        weight: None for 1.
        bias: None for 0.
        eps: a small number.
    """

    mean: Tensor | None
    var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def find_kind(to: str | Callable[..., nn.Module]) -> Kind | None:
    """Find a kind by its name or by one of its classes; None for another class or function.

    Raises:
        ValueError: no kind has this name, or ``to`` is neither a name nor callable.
    """
    if isinstance(to, str) and to in KINDS:
        return KINDS[to]
    if isinstance(to, type) and to in _OF_CLASS:
        return _OF_CLASS[to][0]
    if callable(to) and not isinstance(to, nn.Module):
        return None
    raise ValueError(f"convert_: to must be a layer's class, or one of {', '.join(KINDS)}; got {to!r}.")


def kind_of(module: nn.Module) -> tuple[Kind, int]:
    """Return a known layer's kind and its number of spatial dimensions, 0 if it takes any.

    Raises:
        KeyError: its class is unknown.
    """
    cls = listed_class(type(module))
    if cls is None:
        raise KeyError(type(module))
    adapter = None if cls in _OF_CLASS else adapter_for(cls)
    if adapter is not None:
        return _FOREIGN[adapter.like], adapter.dimensions
    return _OF_CLASS.get(cls) or (_FOREIGN["batch_norm"], 0)


def listed_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """Return the listed or registered class that a class counts as; None if there is none."""
    for base in cls.__mro__:
        if base in _OF_CLASS or base is _BatchNorm or adapter_for(base) is not None:
            return base if not _changes_forward(cls, base) else None
    return None


def overridden(cls: type[nn.Module], base: type[nn.Module]) -> list[str]:
    """Name what a subclass overrides in its base, except for harmless names."""
    between = cls.__mro__[: cls.__mro__.index(base)]
    names = {name for each in between for name in vars(each) if hasattr(base, name) or name in _STATE}
    return sorted(names - _HARMLESS)


def adapter_of(module: nn.Module) -> Adapter | None:
    """Return the adapter of a foreign norm's class; None for torch's and ours."""
    cls = listed_class(type(module))
    return None if cls is None or cls in _OF_CLASS else adapter_for(cls)


def is_exact(module: nn.Module) -> bool:
    """Tell whether a module is of exactly a listed class, not of a subclass or a foreign one."""
    return type(module) in _OF_CLASS


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm that surgery supports."""
    if isinstance(module, torch.jit.ScriptModule | _LazyNormBase) or "forward" in vars(module):
        return False
    if listed_class(type(module)) is None or kind_of(module)[0].name not in BATCH_NORMS:
        return False
    adapter = adapter_of(module)
    return adapter is None or not disagreement(module, adapter)


def why_unknown(module: nn.Module) -> str | None:
    """Say why a module that looks like a batch norm is not treated as one; None if it does not look like one."""
    if is_batch_norm(module):
        return None
    if isinstance(module, _LazyNormBase):
        return "it has not seen its first batch, so its channels are not known yet. Run the model once."
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a script, whose forward cannot be inspected." if hasattr(module, "running_mean") else None
    cls = listed_class(type(module))
    if (isinstance(module, _BatchNorm | BatchNormBase) or cls is not None) and "forward" in vars(module):
        return "its forward has been replaced on the instance, so its computation is unknown."
    adapter = adapter_of(module)
    if adapter is not None:
        return f"it does not match its registration: {disagreement(module, adapter)}."
    if isinstance(module, _BatchNorm | BatchNormBase):
        return f"it is a subclass of batch norm that overrides {', '.join(_own_names(type(module)))}. {_REGISTER}"
    if isinstance(module, _InstanceNorm):
        tracks = _tensor(module, "running_mean") is not None
        return "it keeps running statistics, but it is an instance norm." if tracks else None
    if stored_names(module) is not None:
        return f"it keeps running statistics, but it is no batch norm of torch's or ours. {_REGISTER}"
    return None


def stored_names(module: nn.Module) -> tuple[str, str] | None:
    """Return a module's names for its running mean and variance; None if it has none."""
    return next((names for names in _STORED if _tensor(module, names[1]) is not None), None)


_STORED = (
    *(("running_mean", "running_var"), ("moving_mean", "moving_var")),
    *(("moving_mean", "moving_variance"), ("running_mean", "running_variance")),
)
_REGISTER = "If it is a batch norm, register it: steadynorm.surgery.register(cls, ...)."


def channels_of(norm: nn.Module) -> int:
    """Return the channels of a batch norm."""
    stored = _tensor(norm, "running_mean")
    return int(norm.num_features) if stored is None else len(stored)  # type: ignore[arg-type]


def eps_of(norm: nn.Module) -> float:
    """Return the eps of a batch norm."""
    adapter = adapter_of(norm)
    name = "eps" if adapter is None else adapter.eps
    return float(getattr(norm, name) if isinstance(name, str) else name)


def evaluation_of(norm: nn.Module) -> Evaluation:
    """Return the values that a batch norm uses in evaluation."""
    adapter, eps = adapter_of(norm), eps_of(norm)
    weight = _tensor(norm, "weight")
    if adapter is not None and adapter.absolute_weight and weight is not None:
        weight = weight.abs() + eps
    mean, var, bias = (_tensor(norm, name) for name in ("running_mean", "running_var", "bias"))
    return Evaluation(mean=mean, var=var, weight=weight, bias=bias, eps=eps)


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter, buffer or attribute that is a tensor."""
    tables: list[Any] = [vars(module), module._buffers, module._parameters]  # in a script they are not dicts
    value = next((table[name] for table in tables if name in table), None)
    return value if isinstance(value, Tensor) else None


def _changes_forward(cls: type[nn.Module], base: type[nn.Module]) -> bool:
    return bool(set(overridden(cls, base)) - _BESIDE_FORWARD)


def _own_names(cls: type[nn.Module]) -> list[str]:
    """Name what keeps a subclass from counting as its parent."""
    base = next(each for each in cls.__mro__ if each in _OF_CLASS or each in (_BatchNorm, BatchNormBase))
    return sorted(set(overridden(cls, base)) - _BESIDE_FORWARD)


def label(module: nn.Module, **options: Any) -> str:  # noqa: ANN401 (the layer's)
    """Name a module's class, size and options, to distinguish torch's from ours: ``torch.nn.BatchNorm2d(64)``."""
    cls = type(module)
    if cls.__module__.startswith("torch.nn."):
        name = f"torch.nn.{cls.__qualname__}"
    elif cls.__module__.startswith("steadynorm."):
        name = f"steadynorm.{cls.__qualname__}"
    else:
        name = f"{cls.__module__}.{cls.__qualname__}"
    size = [str(getattr(module, each)) for each in _SIZES if hasattr(module, each)]
    stored = _tensor(module, "running_mean")
    size = size or ([] if stored is None else [str(stored.numel())])
    size += [repr(module.activation)] if isinstance(getattr(module, "activation", None), str) else []
    size += [f"{key}={value!r}" for key, value in options.items()]
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
