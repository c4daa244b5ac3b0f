"""Rebuild a layer as another class with the same Parameter and buffer objects, flags, hooks and attributes."""

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
"""Attribute of a frozen layer: its :class:`Origin`."""
FLAGS = "_frozen_affine"
"""Attribute of a layer with frozen weight and bias: which of them required a gradient."""
DIMENSIONS = "_spatial_dimensions"
"""Attribute of a synchronized layer: its former spatial dimensions. An int, so torch's layer pickles without us."""
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
    """What a layer was before it was frozen, beyond what the layer itself shows.

    Args:
        kind: name of its kind.
        options: keyword arguments beyond torch's.
    """

    kind: str
    options: dict[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the same object: it never changes, and a process group cannot be copied."""
        return self

    @classmethod
    def of(cls, module: nn.Module) -> Origin:
        """Describe a batch norm."""
        return cls(kind=kind_of(module)[0].name, options=options_of(module))


def options_of(module: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments beyond torch's that would rebuild a batch norm."""
    return {name: getattr(module, name) for name in kind_of(module)[0].options() if hasattr(module, name)}


def carried_options(module: nn.Module, kind: Kind) -> tuple[dict[str, Any], list[str]]:
    """Return the options that another kind also takes, and a note for each other option that is set."""
    own, defaults, known = options_of(module), kind_of(module)[0].options(), kind.options()
    carried = {name: value for name, value in own.items() if name in known}
    if kind.is_frozen:  # keeps its options in Origin
        return carried, []
    lost = [
        f"{name}={value!r} is not known there"
        for name, value in own.items()
        if name not in known and value is not None and value != defaults[name]
    ]
    return carried, lost


def why_not_rebuilt(module: Norm) -> str | None:
    """Say why a layer cannot be rebuilt with its full state; None if it can."""
    if module._modules:
        return f"it holds modules of its own: {', '.join(module._modules)}."
    cls = listed_class(type(module))
    assert cls is not None
    others = overridden(type(module), cls)
    if others:
        return f"it is a subclass that overrides {', '.join(others)}, which another layer would not have."
    own = _names(cls)  # type: ignore[arg-type]  # mypy says that modules have no hash
    foreign = [name for name in (*module._parameters, *module._buffers) if name not in own]
    return f"it has parameters or buffers of its own: {', '.join(foreign)}." if foreign else None


def fresh_like(module: Norm, cls: type[nn.Module], **options: Any) -> nn.Module:  # noqa: ANN401 (the class's)
    """Build a layer with the channels, torch arguments and device of another batch norm.

    Options override the other batch norm's arguments.

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
    """Move the state of a layer to a new one: the same objects wherever the new one can hold them.

    Args:
        module: a batch norm.
        new: the layer that replaces it.
        is_known: whether the new layer is a batch norm or group norm, whose state has the same meaning in any shape.
            For another class, state with the same names and shapes is moved.

    Returns:
        notes on state that had to change.
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
    """Copy the attributes that were set on a module to a new one: all except ``theirs``."""
    for name, value in vars(module).items():
        if name not in theirs and name not in vars(new):
            setattr(new, name, value)


def bring_back_with(edits: Transaction, module: Norm, new: nn.Module) -> None:
    """Make undo restore a layer with its successor's current buffers: moving a model creates new ones."""
    left, weight = dict(new._buffers), module._parameters.get("weight")
    before = None if weight is None else (weight.device, weight.dtype)

    def undo() -> None:
        moved = weight is not None and (weight.device, weight.dtype) != before
        for name, mine in list(module._buffers.items()):
            now = new._buffers.get(name, new._parameters.get(name))
            if mine is None:
                continue
            if isinstance(now, nn.Parameter):  # for a foreign frozen layer, whose weight and bias are buffers
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
    """Turn off the gradients of a layer's parameters, and store which required one; tell whether any did."""
    flags = {name: each.requires_grad for name, each in module._parameters.items() if each is not None}
    if not any(flags.values()):
        return False
    edits.set_attribute(module, FLAGS, flags)
    for parameter in module._parameters.values():
        if parameter is not None and parameter.requires_grad:
            edits.set_attribute(parameter, "requires_grad", False)
    return True


def share_hooks(module: nn.Module, new: nn.Module) -> None:
    """Share a module's hooks with a new one, so that their handles remove them from both."""
    for name in _HOOKS:
        vars(new)[name] = vars(module)[name]


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has hooks on its forward or backward."""
    return any(vars(module).get(name) for name in _HOOKS)


def with_activation(norm: nn.Module, activation: Activation | None) -> nn.Module:
    """Put an explicit activation after a norm, to replace a layer that fused it; hooks see the same tensors."""
    wrapper = NormAddActivation(norm, activation)
    wrapper.activation.training = norm.training
    return wrapped(norm, wrapper)


def wrapped(norm: nn.Module, wrapper: nn.Module) -> nn.Module:
    """Make a module around a norm replace it: in its mode, and with its hooks."""
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
    """Whether a new layer can take over state beyond torch's."""
    return value is not None and fresh is not None and value.shape == fresh.shape


def _narrow_statistics(new: nn.Module) -> list[str]:
    """Store statistics in the parameters' dtype, which torch's layer requires."""
    weight, mean = new._parameters.get("weight"), new._buffers.get("running_mean")
    if weight is None or mean is None or weight.dtype == mean.dtype:
        return []
    for name in ("running_mean", "running_var"):
        new._buffers[name] = new._buffers[name].to(weight.dtype)  # type: ignore[union-attr]
    return [f"statistics rounded from {mean.dtype} to {weight.dtype}, which torch's layer needs for such parameters"]


@functools.cache
def _names(cls: Any) -> frozenset[str]:  # noqa: ANN401 (any batch norm's class)
    """Name what the constructor of a class sets; any other attribute was set later."""
    needed = {name: 1 for name, each in inspect.signature(cls).parameters.items() if each.default is each.empty}
    made: list[Any] = [cls(**needed)]
    if issubclass(cls, BatchNormBase):
        made.append(cls(running="self_tuned", **needed))
    return frozenset(name for each in made for name in (*vars(each), *each._parameters, *each._buffers)) | {
        ORIGIN,
        DIMENSIONS,
    }
