"""Whether the output of a layer's subclass with its own forward still scales with weight and shifts with bias."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.surgery.flow.dataflow import Call
from steadynorm.surgery.flow.scale import Affine, with_scaled_outputs
from steadynorm.surgery.flow.trial import TOLERANCES, preserved_state

__all__ = ["follows_its_weights"]


def follows_its_weights(call: Call, channel_dim: int) -> bool:
    """Tell whether folded weights would give the affine map of the output that folding needs.

        layer with (gain·W, gain·b + shift)  =  gain · (layer with W, b) + shift

    Tested on the input of the call, with a gain and shift for each channel. A layer that standardizes its weights,
    adds a branch or applies an activation fails.

    Args:
        call: of a layer; its input is unchanged, or any other finite tensor of its shape.
        channel_dim: channel dimension of the output.
    """
    output = call.output
    channels = output.shape[channel_dim]
    affine = Affine(gain=torch.linspace(0.5, 2, channels).double(), shift=torch.linspace(-1, 1, channels).double())
    weight, bias = with_scaled_outputs(call.module, affine)
    with torch.no_grad(), preserved_state(call.module):
        before = _given(call, call.module._parameters["weight"], call.module._parameters["bias"])
        after = _given(call, weight, bias)
    view = [-1 if dim == channel_dim else 1 for dim in range(output.dim())]
    gain, shift = (each.to(before).view(view) for each in (affine.gain, affine.shift))
    expected = before * gain + shift
    error = float((after - expected).abs().max()) if output.numel() else 0.0
    return error <= TOLERANCES.get(output.dtype, 0.0) * float(expected.abs().max())


def _given(call: Call, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the output of a copy of the layer with other parameters."""
    layer: Any = copy.copy(call.module)
    old = call.module._parameters["weight"]
    assert old is not None
    layer._parameters = dict(layer._parameters)
    for name, value in (("weight", weight), ("bias", bias)):
        layer._parameters[name] = None if value is None else nn.Parameter(value.to(old), requires_grad=False)
    output: Tensor = type(layer).forward(layer, *call.args, **call.kwargs)
    return output
