"""A layer of another class with the same state: the same Parameter and buffer objects, flags, hooks and attributes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from steadynorm.functional import Activation
from steadynorm.layers.base import BatchNormBase
from steadynorm.layers.kinds import Kind
from steadynorm.layers.norm_add_activation import ACTIVATION_MODULES, NormAddActivation
from steadynorm.layers.state import normal_tensors
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.surgery.change import Transaction
from steadynorm.surgery.kinds import Norm, channels_of, eps_of, kind_of, listed_class, overridden

__all__ = [
    "DIMENSIONS",
    "FLAGS",
    "ORIGIN",
    "Origin",
    "activation_of",
    "bring_back_with",
    "carried_options",
    "freeze_affine_",
    "fresh_like",
    "has_hooks",
    "move_attributes",
    "move_state",
    "options_of",
    "share_hooks",
    "why_not_rebuilt",
    "with_activation",
    "wrapped",
]

ORIGIN = "_origin"
"""Attribute of a frozen layer: what it was."""
FLAGS = "_frozen_affine"
"""Attribute of a layer whose weight and bias are frozen: which of them required a gradient."""
DIMENSIONS = "_spatial_dimensions"
"""Attribute of a synchronised layer: how many it had. A plain number, so that torch's own can be pickled without us."""
_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a layer was before it was frozen, as far as the layer itself does not tell.

    Args:
        kind: name of its kind.
        options: keyword arguments beyond torch's.
    """

    kind: str
    options: dict[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Give this one: nothing of it changes, and a process group cannot be copied."""
        return self

    @classmethod
    def of(cls, module: nn.Module) -> Origin:
        """Describe a batch norm."""
        return cls(kind=kind_of(module)[0].name, options=options_of(module))


def options_of(module: nn.Module) -> dict[str, Any]:
    """Give the keyword arguments beyond torch's with which a batch norm would be built as it is."""
    return {name: getattr(module, name) for name in kind_of(module)[0].options() if hasattr(module, name)}


def carried_options(module: nn.Module, kind: Kind) -> tuple[dict[str, Any], list[str]]:
    """Give those options that another kind takes as well, and a note for each set one that it does not."""
    own, defaults, known = options_of(module), kind_of(module)[0].options(), kind.options()
    carried = {name: value for name, value in own.items() if name in known}
    if kind.is_frozen:  # remembers what it was, see Origin
        return carried, []
    lost = [
        f"{name}={value!r} is not known there"
        for name, value in own.items()
        if name not in known and value is not None and value != defaults[name]
    ]
    return carried, lost


def why_not_rebuilt(module: Norm) -> str | None:
    """Say why a layer cannot be rebuilt with all that it holds; None where it can."""
    if module._modules:
        return f"it holds modules of its own: {', '.join(module._modules)}."
    cls = listed_class(type(module))
    assert cls is not None
    others = overridden(type(module), cls)
    if others:
        return f"it is a subclass that overrides {', '.join(others)}, which another layer would not have."
    own = _names(cls)  # type: ignore[arg-type]  # mypy holds that modules have no hash
    foreign = [name for name in (*module._parameters, *module._buffers) if name not in own]
    return f"it has been given parameters or buffers of its own: {', '.join(foreign)}." if foreign else None


def fresh_like(module: Norm, cls: type[nn.Module], **options: Any) -> nn.Module:  # noqa: ANN401 (the class's)
    """Build a layer of a class for as many channels, with torch's arguments of another batch norm, where that lies.

    Options come before what the other batch norm has.

    Raises:
        ValueError: the class refuses these arguments.
        TypeError: the class does not know an option.
    """
    tensor = next((each for each in _state_of(module).values() if each is not None and each.is_floating_point()), None)
    parameter = module._parameters.get("weight")
    like: dict[str, Any] = {
        "eps": eps_of(module),
        "momentum": getattr(module, "momentum", 0.1),
        "affine": getattr(module, "weight", None) is not None,
        "track_running_stats": module._buffers.get("running_mean") is not None,
    }
    if tensor is not None:
        like |= {"device": tensor.device, "dtype": tensor.dtype if parameter is None else parameter.dtype}
    return cls(channels_of(module), **like | options)


def move_state(module: Norm, new: nn.Module, *, is_known: bool = True) -> list[str]:
    """Give a new layer what another holds: the same objects wherever the new one can have them.

    Args:
        module: a batch norm.
        new: what takes its place.
        is_known: whether the new layer is a batch norm or group norm, whose state means what it means in the old one,
            whatever its shape; of another class what has the same names and shapes goes on.

    Returns:
        notes about what it cannot have as it was.
    """
    notes = []
    for table in ("_parameters", "_buffers"):
        entries = getattr(new, table)
        for name, value in getattr(module, table).items():
            if name in entries and ((is_known and name in _STATE) or _fits(value, entries[name])):
                entries[name] = value
    if isinstance(new, BatchNormBase):
        new.widen_statistics_()
    elif "running_mean" in new._buffers:
        notes += _narrow_statistics(new)
    for name in ("affine", "track_running_stats") if is_known else ():
        if hasattr(module, name) and hasattr(new, name):
            setattr(new, name, getattr(module, name))
    new.training = module.training
    share_hooks(module, new)
    for name in _STATE_HOOKS:
        vars(new)[name] = vars(module)[name]
    move_attributes(module, new, _names(listed_class(type(module))))  # type: ignore[arg-type]  # as above
    return notes


def move_attributes(module: nn.Module, new: nn.Module, theirs: Container[str]) -> None:
    """Give a new module the attributes that were set on another: all that are not ``theirs``."""
    for name, value in vars(module).items():
        if name not in theirs and name not in vars(new):
            setattr(new, name, value)


def bring_back_with(edits: Transaction, module: Norm, new: nn.Module) -> None:
    """Let an undone layer come back with the buffers that its successor has come to: moving a model makes new ones."""
    left, weight = dict(new._buffers), module._parameters.get("weight")
    before = None if weight is None else (weight.device, weight.dtype)

    def undo() -> None:
        moved = weight is not None and (weight.device, weight.dtype) != before
        for name, mine in list(module._buffers.items()):
            now = new._buffers.get(name, new._parameters.get(name))
            if mine is None:
                continue
            if isinstance(now, nn.Parameter):  # of a foreign frozen layer, whose weight and bias are buffers
                module._buffers[name] = mine if now.data_ptr() == mine.data_ptr() else now.detach()
            elif now is not None and now is not left.get(name):
                with normal_tensors():
                    module._buffers[name] = now if left.get(name) is mine else now.to(mine.dtype)
            elif now is None and moved and weight is not None:  # the successor had none, so nothing has moved it
                wide = statistics_dtype(weight.dtype) if isinstance(module, BatchNormBase) else weight.dtype
                with normal_tensors():
                    module._buffers[name] = mine.to(weight.device, wide if mine.is_floating_point() else mine.dtype)

    edits.edit(lambda: None, undo, lambda: True)


def freeze_affine_(edits: Transaction, module: nn.Module) -> bool:
    """Let no parameter of a layer require a gradient, and let the layer remember which did; tell whether any did."""
    flags = {name: each.requires_grad for name, each in module._parameters.items() if each is not None}
    if not any(flags.values()):
        return False
    edits.set_attribute(module, FLAGS, flags)
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad:
            edits.set_attribute(parameter, "requires_grad", False)
    return True


def share_hooks(module: nn.Module, new: nn.Module) -> None:
    """Let a new module have the hooks of another, so that the handles of those hooks remove them there too."""
    for name in _HOOKS:
        vars(new)[name] = vars(module)[name]


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has hooks on its forward or backward."""
    return any(vars(module).get(name) for name in _HOOKS)


def with_activation(norm: nn.Module, activation: Activation | None) -> nn.Module:
    """Put an explicit activation after a norm, in place of a layer that had it fused; hooks see what they saw."""
    wrapper = NormAddActivation(norm, activation)
    wrapper.activation.training = norm.training
    return wrapped(norm, wrapper)


def wrapped(norm: nn.Module, wrapper: nn.Module) -> nn.Module:
    """Let a module around a norm take its place: in its mode, and with its hooks."""
    wrapper.training = norm.training
    share_hooks(norm, wrapper)
    share_hooks(nn.Identity(), norm)
    return wrapper


def activation_of(wrapper: NormAddActivation) -> Activation | None:
    """Name the activation of a wrapper."""
    return {cls: name for name, cls in ACTIVATION_MODULES.items()}[type(wrapper.activation)]


def _state_of(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def _fits(value: Tensor | None, fresh: Tensor | None) -> bool:
    """Whether state beyond torch's goes on in a new layer."""
    return value is not None and fresh is not None and value.shape == fresh.shape


def _narrow_statistics(new: nn.Module) -> list[str]:
    """Store statistics in the parameters' dtype, the only one that torch's layer takes beside them."""
    weight, mean = new._parameters.get("weight"), new._buffers.get("running_mean")
    if weight is None or mean is None or weight.dtype == mean.dtype:
        return []
    for name in ("running_mean", "running_var"):
        new._buffers[name] = new._buffers[name].to(weight.dtype)  # type: ignore[union-attr]
    return [f"statistics rounded from {mean.dtype} to {weight.dtype}, which torch's layer wants beside such parameters"]


@functools.cache
def _names(cls: Any) -> frozenset[str]:  # noqa: ANN401 (any batch norm's class)
    """Give what a layer of a class has from its constructor; anything else was set on it later."""
    needed = {name: 1 for name, each in inspect.signature(cls).parameters.items() if each.default is each.empty}
    made: list[Any] = [cls(**needed)]
    if issubclass(cls, BatchNormBase):
        made.append(cls(running="self_tuned", **needed))
    return frozenset(name for each in made for name in (*vars(each), *each._parameters, *each._buffers)) | {
        ORIGIN,
        DIMENSIONS,
    }
