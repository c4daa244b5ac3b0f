"""A norm's output in evaluation beside the formula in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.doctor.evidence import Parity
from steadynorm.layers.norm_add_activation import ACTIVATION_MODULES
from steadynorm.surgery.kinds import adapter_of, evaluation_of, is_batch_norm, kind_of

__all__ = ["parity_of"]

ROUNDINGS = 16
"""Units in the last place of its terms by which a sum of three products may be off, and half as much again."""


def parity_of(module: nn.Module, x: Tensor, y: Tensor) -> Parity | None:
    """Compare what a norm gave with its formula.

    An element of y = (x − mean)·scale + shift may be off by :data:`ROUNDINGS` units of ((|x| + |mean|)·scale + |shift|)
    in the coarsest of the dtypes, whatever the order of the operations.

    Args:
        module: in evaluation.
        x: what it was given.
        y: what it gave.

    Returns:
        None where the formula is not known: unknown classes, gated layers, other shapes.
    """
    expected = _formula(module, x.detach())
    if expected is None or expected[0].shape != y.shape:
        return None
    right, terms = expected
    unit = max(torch.finfo(each.dtype).eps for each in (x, y) if each.is_floating_point())
    return Parity(
        error=_excess(y, right, terms * unit * ROUNDINGS),
        other_backend=_other_backend(module, x, right, terms * unit * ROUNDINGS),
    )


def _excess(y: Tensor, right: Tensor, allowed: Tensor) -> float:
    """Give the largest error beyond rounding, relative to the root mean square of what is right; 0 for none."""
    error = (y.detach().double() - right).abs()
    beyond = (error > allowed) | (error.isnan() & right.isfinite())
    if not beyond.any():
        return 0.0
    size = float(right[right.isfinite()].square().mean().sqrt())
    return float(error[beyond].nan_to_num(nan=math.inf).max()) / max(size, 1e-300)


def _other_backend(module: nn.Module, x: Tensor, right: Tensor, allowed: Tensor) -> float:
    """Give the error of the same layer without cuDNN; 0 where that has no part in it."""
    if not x.is_cuda or not torch.backends.cudnn.enabled:
        return 0.0
    now = torch.backends.cudnn
    with torch.no_grad(), now.flags(enabled=False, benchmark=now.benchmark, deterministic=now.deterministic):
        return _excess(type(module).forward(module, x.detach().clone()), right, allowed)


def _formula(module: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:  # noqa: ANN401 (any norm)
    """Give the output in float64 and the sum of its terms' magnitudes."""
    wide = x.double()
    if is_batch_norm(module):
        kind = kind_of(module)[0]
        adapter = adapter_of(module)
        overwrites = adapter is not None and adapter.absolute_weight  # InPlace-ABN, whose input is gone
        if not kind.evaluates_as_batch_norm or kind.name == "masked_batch_norm" or overwrites:
            return None
        stored = evaluation_of(module)
        if stored.mean is None or stored.var is None:
            return None
        right, terms = _normalized(wide, stored.mean, stored.var, stored.weight, stored.bias, stored.eps)
        return _tail(module, right.to(x.dtype)).double() if _has_tail(module) else right, terms
    if type(module) is nn.GroupNorm:
        grouped = wide.reshape(len(x), module.num_groups, -1)
        var, mean = torch.var_mean(grouped, 2, correction=0)
        mean, var = (each.repeat_interleave(module.num_channels // module.num_groups, 1) for each in (mean, var))
        right, terms = _normalized(wide, mean, var, module.weight, module.bias, module.eps)
        return right, terms + _of_sums(module.weight)
    if type(module) is nn.LayerNorm:
        dims = list(range(x.dim() - len(module.normalized_shape), x.dim()))
        var, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
        right, terms = _scaled(wide, mean, var, _wide(module.weight), _wide(module.bias), module.eps)
        return right, terms + _of_sums(module.weight)
    return None


def _of_sums(weight: Tensor | None) -> float:
    """Give the magnitude whose rounding a measured mean has: a standard deviation, times the largest weight."""
    return 1.0 if weight is None or not weight.numel() else float(weight.detach().abs().max())


def _has_tail(module: Any) -> bool:  # noqa: ANN401 (a batch norm)
    adapter = adapter_of(module)
    return bool(adapter is not None and dict(adapter.tail(module))) or getattr(module, "activation", None) is not None


def _tail(module: Any, y: Tensor) -> Tensor:  # noqa: ANN401 (a batch norm)
    """Apply what the layer runs after normalizing."""
    adapter = adapter_of(module)
    after = [] if adapter is None else list(dict(adapter.tail(module)).values())
    if adapter is None:
        after = [ACTIVATION_MODULES[module.activation]()]
    for each in after:
        y = each(y)
    return y


def _normalized(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalize; mean and var have shape (C,) or (N, C), weight and bias (C,)."""
    return _scaled(x, _along(mean, x), _along(var, x), _along_or(weight, x), _along_or(bias, x), eps)


def _scaled(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = torch.zeros_like(scale) if bias is None else bias
    return (x - mean) * scale + shift, (x.abs() + mean.abs()) * scale.abs() + shift.abs()


def _along(values: Tensor, x: Tensor) -> Tensor:
    wide = values.detach().double()
    return wide.view(*(wide.shape if wide.dim() == 2 else (1, -1)), *[1] * (x.dim() - 2))


def _along_or(values: Tensor | None, x: Tensor) -> Tensor | None:
    return None if values is None else _along(values, x)


def _wide(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().double()
