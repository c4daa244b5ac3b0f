"""Pairs of a batch norm and the only layer that feeds it or that it feeds: when the two can be merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from steadynorm.surgery.flow.dataflow import LAYERS, Call, Flow, Value, storage_of
from steadynorm.surgery.flow.own_forward import follows_its_weights
from steadynorm.surgery.kinds import label

__all__ = ["Link", "is_transposed", "link_after", "link_before", "reach_of", "why_not_alone"]

_REPARAMETRIZED: dict[type[Any], str] = {
    prune.BasePruningMethod: "torch.nn.utils.prune.remove",
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}
"""Class of hook that torch's functions register -> how to remove it."""
_OWN = ("forward", "_conv_forward", "__call__")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A layer and a batch norm with nothing between them, whose shared tensor nothing else reads.

    Args:
        layer: the only call of the layer.
        norm: the only call of the batch norm.
        channels: the norm's channel for each output channel of a layer before the norm, or input channel of one
            after; shape (channels of the layer,), int64. The identity unless an ``unflatten`` or ``flatten`` stands
            between them.
        same_view: whether one returns the very tensor that the other takes, not another view or a copy of it.
    """

    layer: Call
    norm: Call
    channels: Tensor
    same_view: bool


def why_not_alone(flow: Flow, norm: nn.Module) -> str | None:
    """Say why a batch norm cannot be removed; None if it can."""
    calls = flow.calls_of(norm)
    if not calls:
        return "it is not reached by the example. Give an example that runs it."
    if len(calls) > 1:
        return f"it is called {len(calls)} times."
    if calls[0].input is None or not isinstance(calls[0].output, Tensor):
        return "it is not called with a tensor."
    for tensor in [*norm.parameters(), *norm.buffers()]:
        others = _used_outside(flow, tensor, calls[0])
        if others is not None:
            return f"its parameters and statistics are also used by {others}."
    return None


def link_before(flow: Flow, norm: Call) -> Link | str:
    """Find the layer whose output a batch norm takes, or say why there is none.

    Args:
        flow: of a run.
        norm: the norm's only call, see :func:`why_not_alone`.
    """
    value = flow.value_of(norm.input)
    if value is None or value.call is None or not isinstance(value.call.module, LAYERS):
        return "no convolution or linear layer feeds it"
    layer = value.call
    others = value.used_outside(norm)
    if why := _why_reparametrized(layer):
        return why
    if others:
        return f"the output of {layer.name!r} is also used by {others[0]}"
    if any(flow.value_of(extra) is value for extra in norm.extras.values() if isinstance(extra, Tensor)):
        return f"the output of {layer.name!r} is also its residual"
    assert norm.input is not None
    dim = _channel_dim(layer.module, value.tensor)
    seen, own = _positions(value, norm.input, dim), _numbered(norm.input, 1)
    channels = None if seen is None or dim is None else _table(seen, own, value.tensor.shape[dim])
    if channels is None:
        return f"its channels are not those of {layer.name!r}"
    why = _why_not_layer(flow, layer) or _why_not_own_forward(layer, dim)
    return why or Link(layer=layer, norm=norm, channels=channels, same_view=_is_same_view(value.tensor, norm.input))


def link_after(flow: Flow, norm: Call) -> Link | str:
    """Find the layer that takes a batch norm's output, or say why there is none; otherwise as :func:`link_before`."""
    value = flow.value_of(norm.output)
    if value is None or value.call is not norm:
        return "what it gives is not its own"
    if not value.uses:
        return "nothing takes what it gives"
    for call in (call for use in value.uses for call in use.calls if isinstance(call.module, LAYERS)):
        if why := _why_reparametrized(call):  # a hook that does so would count as another reader
            return why
    takers = [call for call in value.uses[0].calls if isinstance(call.module, LAYERS)]
    if not takers or flow.value_of(takers[-1].input) is not value:
        return f"what it gives goes to {value.uses[0]}, not to a convolution or linear layer"
    layer = takers[-1]
    others = value.used_outside(layer)
    if others:
        return f"what it gives is also used by {others[0]}"
    assert layer.input is not None
    dim = _channel_dim(layer.module, layer.input)
    seen = _positions(value, layer.input, 1)
    own = None if dim is None else _numbered(layer.input, dim)
    channels = None if seen is None or own is None or dim is None else _table(own, seen, layer.input.shape[dim])
    if channels is None:
        return f"its channels are not those of {layer.name!r}"
    why = _why_not_layer(flow, layer) or _why_not_own_forward(layer, None)
    return why or Link(layer=layer, norm=norm, channels=channels, same_view=_is_same_view(value.tensor, layer.input))


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution."""
    return isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def reach_of(conv: nn.Module) -> list[int]:
    """Return the padding of a convolution in the order of :func:`torch.nn.functional.pad`: last dimension first."""
    padding, size, dilation = conv.padding, conv.kernel_size, conv.dilation
    assert isinstance(size, tuple) and isinstance(dilation, tuple)
    if padding == "same":
        totals = [step * (width - 1) for step, width in zip(dilation, size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    if padding == "valid":
        return [0] * (2 * len(size))
    assert isinstance(padding, tuple)
    return [side for each in reversed(padding) for side in (each, each)]


def _why_not_own_forward(call: Call, channel_dim: int | None) -> str:
    """Say why a layer with its own forward cannot be trusted; empty if it can.

    Args:
        call: of the layer.
        channel_dim: channel dimension of its output; None if its inputs are to be scaled, which padding of its own
            would have to take into account.
    """
    layer = call.module
    base = next(cls for cls in LAYERS if isinstance(layer, cls))
    own = [each for each in _OWN if getattr(type(layer), each, None) is not getattr(base, each, None)]
    replaced = "__call__" in own or any(each in vars(layer) for each in _OWN)
    if not replaced and (not own or (channel_dim is not None and follows_its_weights(call, channel_dim))):
        return ""
    return f"{call.name!r} ({label(layer)}) has a forward of its own"


def _why_reparametrized(call: Call) -> str:
    """Say what recomputes a layer's weight or bias in each forward, and how to undo that; empty if nothing does."""
    module, name = call.module, call.name
    for kind in ("weight", "bias"):
        if parametrize.is_parametrized(module, kind):
            parametrizations: Any = module.parametrizations
            made = [type(each).__name__.strip("_") for each in parametrizations[kind]]
            by, undo = ", ".join(made), "torch.nn.utils.parametrize.remove_parametrizations"
        else:
            hooks = [each for each in module._forward_pre_hooks.values() if _tensor_of(each) == kind]
            if not hooks:
                continue
            by = type(hooks[0]).__name__
            undo = next(undo for cls, undo in _REPARAMETRIZED.items() if isinstance(hooks[0], cls))
        return f"the {kind} of {name!r} is computed again in each forward, by {by}. Make it a parameter: {undo}"
    return ""


def _tensor_of(hook: object) -> str:
    """Name the tensor that a hook of torch.nn.utils computes; empty for other hooks."""
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name
    return hook.name if isinstance(hook, WeightNorm | SpectralNorm) else ""


def _why_not_layer(flow: Flow, call: Call) -> str:
    """Say why a layer's parameters cannot be changed; empty if they can."""
    module, name = call.module, call.name
    times = len(flow.calls_of(module))
    if times > 1:
        return f"{name!r} is called {times} times"
    weight = module._parameters.get("weight")
    if type(weight) is not nn.Parameter or not weight.is_floating_point() or "bias" not in module._parameters:
        return f"the weight of {name!r} is no plain parameter (a quantized tensor, a parameter of another class)"
    for kind in ("weight", "bias"):
        parameter = module._parameters[kind]
        if parameter is None:
            continue
        owners = flow.owners_of(parameter)
        if len(owners) > 1:
            return f"the {kind} of {name!r} is tied: {', '.join(map(repr, owners))}"
        others = _used_outside(flow, parameter, call)
        if others is not None:
            return f"the {kind} of {name!r} is also used by {others}"
    return ""


def _used_outside(flow: Flow, tensor: Tensor, call: Call) -> str | None:
    value = flow.value_of(tensor)
    others = [] if value is None else value.used_outside(call)
    return str(others[0]) if others else None


def _channel_dim(layer: nn.Module, tensor: Tensor) -> int | None:
    """Return the channel dimension of a layer's input or output; None for a convolution without a batch."""
    if isinstance(layer, nn.Linear):
        return tensor.dim() - 1
    size = layer.kernel_size
    assert isinstance(size, tuple)
    return 1 if tensor.dim() == len(size) + 2 else None


def _is_same_view(a: Tensor, b: Tensor) -> bool:
    same_memory = storage_of(a) == storage_of(b) and a.storage_offset() == b.storage_offset()
    return same_memory and a.size() == b.size() and a.stride() == b.stride()


def _numbered(tensor: Tensor, dim: int) -> Tensor:
    """Return the index along a dimension for every element of a tensor."""
    index = torch.arange(tensor.shape[dim])
    return index.view([-1 if each == dim else 1 for each in range(tensor.dim())]).expand(tensor.shape)


def _positions(value: Value, seen: Tensor, dim: int | None) -> Tensor | None:
    """Return the index along a dimension of a value for every element of another view or copy of it.

    The index is written at the value's place in memory, carried along with every copy, and read through the view.
    """
    if dim is None or seen.dtype != value.tensor.dtype:
        return None
    memory = {storage_of(value.tensor): _blank(value.tensor)}
    _lie(memory, value.tensor).copy_(_numbered(value.tensor, dim))
    for source, copy in value.copies:
        memory.setdefault(storage_of(copy), _blank(copy))
        _lie(memory, copy).copy_(_lie(memory, source))
    return _lie(memory, seen)


def _blank(tensor: Tensor) -> Tensor:
    return torch.full((tensor.untyped_storage().nbytes() // tensor.element_size(),), -1)


def _lie(memory: dict[int | None, Tensor], tensor: Tensor) -> Tensor:
    """View the memory that represents a tensor's with the tensor's own size and strides."""
    return memory[storage_of(tensor)].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _table(keys: Tensor, values: Tensor, size: int) -> Tensor | None:
    """Return the one value of each key from 0 to size − 1; None if a key has none, or several."""
    table = torch.full((size,), -1)
    table[keys.reshape(-1)] = values.reshape(-1)
    if bool((table < 0).any()) or not torch.equal(table[keys], values):
        return None
    return table
