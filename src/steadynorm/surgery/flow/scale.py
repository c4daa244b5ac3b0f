"""The arithmetic of folding: a batch norm in evaluation as an affine map, and a layer's weights that include it.

Everything is computed in float64 on the CPU; the code that writes the result rounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steadynorm.surgery.kinds import evaluation_of

__all__ = ["Affine", "affine_of", "with_scaled_inputs", "with_scaled_outputs"]


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The affine map of a batch norm in evaluation, per channel: y = gain · x + shift.

    Args:
        gain: shape (C,), float64.
        shift: shape (C,), float64.
    """

    gain: Tensor
    shift: Tensor

    def at(self, channels: Tensor) -> Affine:
        """Return the map of the given channels, shape (K,), int64, in their order."""
        return Affine(gain=self.gain[channels], shift=self.shift[channels])


def affine_of(norm: nn.Module) -> Affine:
    """Return the affine map of a batch norm in evaluation.

        gain = weight / √(running_var + eps)        shift = bias − running_mean · gain

    Args:
        norm: with running statistics; a missing weight counts as 1, a missing bias as 0.
    """
    numbers = evaluation_of(norm)
    assert numbers.mean is not None and numbers.var is not None
    weight, bias = numbers.weight, numbers.bias
    gain = (_wide(numbers.var) + numbers.eps).rsqrt() * (1 if weight is None else _wide(weight))
    return Affine(gain=gain, shift=(0 if bias is None else _wide(bias)) - _wide(numbers.mean) * gain)


def with_scaled_outputs(layer: nn.Module, affine: Affine) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with which a layer applies the affine map to its output.

        W′ = gain · W        b′ = gain · b + shift

    Args:
        layer: linear, convolution or transposed convolution, grouped or not.
        affine: of its output channels.
    """
    weight, bias = _parameters(layer)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        parts = weight.view(layer.groups, -1, *weight.shape[1:])  # (groups, in/groups, out/groups, ...)
        scaled = parts * _along(affine.gain.view(layer.groups, 1, -1), parts)
        return scaled.flatten(0, 1), affine.gain * bias + affine.shift
    return weight * _along(affine.gain.view(-1, 1), weight), affine.gain * bias + affine.shift


def with_scaled_inputs(layer: nn.Module, affine: Affine) -> tuple[Tensor, Tensor]:
    """Return the weight and bias with which a layer applies the affine map to its input.

        W′ = W · gain        b′ = b + Σ W · shift        over the inputs of an output

    Exact if every output sees all of its inputs, so not at a border padded with zeros.

    Args:
        layer: linear or convolution, grouped or not; not transposed.
        affine: of its input channels.
    """
    weight, bias = _parameters(layer)
    groups = getattr(layer, "groups", 1)
    parts = weight.view(groups, -1, *weight.shape[1:])  # (groups, out/groups, in/groups, ...)
    gain, shift = (_along(each.view(groups, 1, -1), parts) for each in (affine.gain, affine.shift))
    return (parts * gain).flatten(0, 1), bias + (parts * shift).flatten(2).sum(-1).flatten()


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    return _wide(weight).contiguous(), torch.zeros((), dtype=torch.float64) if bias is None else _wide(bias)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _along(values: Tensor, weight: Tensor) -> Tensor:
    """View values so that they broadcast along the first dimensions of a weight."""
    return values.view(*values.shape, *[1] * (weight.dim() - values.dim()))
