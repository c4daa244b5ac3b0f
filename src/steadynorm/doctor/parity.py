"""Compare a norm's output in evaluation with its formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from steadynorm.doctor.batch_evidence import Parity
from steadynorm.layers.norm_add_activation import ACTIVATION_MODULES
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.surgery.kinds import adapter_of, evaluation_of, is_batch_norm, is_exact, kind_of, stored_names

__all__ = ["AFFINE_NAMES", "Formula", "formula_of", "has_tail", "parity_beside_hooks", "parity_of", "parity_of_unknown"]

AFFINE_NAMES = (("weight", "gamma"), ("bias", "beta"))
"""Attribute names of a norm's scale and shift; the first of each are torch's."""
ROUNDINGS = 16
"""Rounding error of a sum of three products in units in the last place of its terms, plus half of it as a margin."""
LIKE = 0.01
"""Difference from batch norm, relative to the output, that a custom layer may have from another eps or variance."""
MOST = 0.5
"""Fraction of a custom layer's channels that must match batch norm for the others to be wrong."""
ROUNDED = 0.05
"""Difference, relative to the output, from a hook that rounds to eight bits."""
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(functional.relu, functional.relu6, functional.silu, functional.gelu, functional.hardswish, functional.elu),
    *(functional.mish, functional.softplus, functional.hardtanh, functional.selu, torch.sigmoid, torch.tanh),
    *(partial(functional.leaky_relu, negative_slope=slope) for slope in (0.01, 0.1, 0.2)),
)
_AT_ONCE = 2**18
"""Number of values compared at once, few enough for a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """Formula of a norm for one input: y = (x − mean)·scale + shift, then its tail. Tensors are float64.

    Args:
        mean: broadcasts to the input.
        scale: broadcasts to the input.
        shift: broadcasts to the input.
        of_sums: magnitude that sets the rounding error of a measured (not stored) mean.
        tail: function that the norm applies afterwards.
    """

    mean: Tensor
    scale: Tensor
    shift: Tensor
    of_sums: float = 0.0
    tail: Callable[[Tensor], Tensor] | None = None

    def output(self, x: Tensor) -> Tensor:
        """Return the output in float64."""
        right = (x.double() - self.mean) * self.scale + self.shift
        return right if self.tail is None else self.tail(right.to(x.dtype)).double()

    def allowed(self, x: Tensor, unit: float) -> Tensor:
        """Return the error that rounding explains."""
        terms = (x.double().abs() + self.mean.abs()) * self.scale.abs() + self.shift.abs() + self.of_sums
        return terms * unit * ROUNDINGS

    def surely_gives(self, x: Tensor, y: Tensor, unit: float) -> bool:
        """Return whether y is within half of the allowed error in the statistics' dtype, and so surely within it."""
        dtype = statistics_dtype(x.dtype)
        half = unit * ROUNDINGS / 2
        offset = ((self.mean * self.scale).abs() + self.shift.abs() + self.of_sums) * half
        each = (self.mean, self.scale, self.shift, self.scale.abs() * half, offset)
        for rows in _parts(x):
            mean, scale, shift, by_size, at_least = (_rows(tensor, x, rows).to(dtype) for tensor in each)
            part = x[rows].to(dtype)
            right = torch.addcmul(shift, part - mean, scale)
            right = right if self.tail is None else self.tail(right.to(x.dtype)).to(dtype)
            if not (right.sub_(y[rows]).abs_() <= torch.addcmul(at_least, part.abs(), by_size)).all():
                return False
        return True


def parity_of(module: nn.Module, formula: Callable[[Tensor], Formula], x: Tensor, y: Tensor) -> Parity | None:
    """Compare a norm's output with its formula.

    An element of y = (x − mean)·scale + shift may be off by :data:`ROUNDINGS` units of ((|x| + |mean|)·scale + |shift|)
    in the coarsest of the dtypes, for any order of operations.

    Args:
        module: in evaluation.
        formula: its formula, see :func:`formula_of`.
        x: its input.
        y: its output.

    Returns:
        the error; None if y and x differ in shape.
    """
    if x.shape != y.shape:
        return None
    x, y = x.detach(), y.detach()
    unit = max(torch.finfo(each.dtype).eps for each in (x, y) if each.is_floating_point())
    expected = formula(x)
    error = 0.0 if expected.surely_gives(x, y, unit) else _excess(y, expected.output(x), expected.allowed(x, unit))
    return Parity(error=error, other_backend=_other_backend(module, expected, x, unit))


def parity_of_unknown(module: Any, x: Tensor, y: Tensor) -> Parity | None:  # noqa: ANN401 (any norm)
    """Compare the evaluation of a layer of an unknown class with its own training, or with batch norm.

    Its weight and bias may be called gamma and beta. If its output is not batch norm's, it is called again in both
    modes with a batch's moments as running statistics, which are restored afterwards: both modes must agree, with any
    further computation. The batch repeats four samples, so that its parts have the same moments. If most channels
    agree with batch norm and some do not, these are wrong.

    Args:
        module: a module of an unknown class, in evaluation.
        x: its input, shape (N, C, ...).
        y: its output.

    Returns:
        the error; None if it has no running statistics of that size or does not train with batch statistics.
    """
    if x.dim() < 2 or x.shape != y.shape or not x.is_floating_point():
        return None
    names = stored_names(module) or ("running_mean", "running_var")
    mean, var = (_of_channels(module, x, name) for name in names)
    if mean is None or var is None:
        return None
    weight, bias = (_of_channels(module, x, *names) for names in AFFINE_NAMES)
    eps = float(getattr(module, "eps", 1e-5))
    right = _formula(mean, var, weight, bias, eps).output(x)
    error = _unlike(y, right)
    if error <= LIKE:
        return Parity(error=0.0, other_backend=0.0)
    if MOST <= _share_alike(y, right) < 1 and _beside_activations(y, right) > LIKE:
        return Parity(error=error, other_backend=0.0)
    if is_exact(module):  # its forward is replaced on the instance
        return Parity(error=_beside_activations(y, right), other_backend=0.0)
    if isinstance(module, _InstanceNorm):
        return None
    alike = x[:4].repeat(-(-len(x) // 4), *[1] * (x.dim() - 1))
    moments = _moments(alike.double().transpose(0, 1).flatten(1))
    with _state_kept(module):
        trained, again = (_called(module, alike, moments, training=True) for _ in range(2))
        evaluated = _called(module, alike, moments, training=False)
    if trained is None or again is None or evaluated is None or _unlike(again, trained.double()) > LIKE:
        return None
    error = _unlike(evaluated, trained.double())
    return Parity(error=error if error > LIKE else 0.0, other_backend=0.0)


def parity_beside_hooks(formula: Formula, x: Tensor, y: Tensor) -> Parity | None:
    """Compare the output of a norm with hooks with its formula; activations and rounding do not count as errors."""
    if x.shape != y.shape:
        return None
    error = _beside_activations(y, formula.output(x))
    return Parity(error=error if error > ROUNDED else 0.0, other_backend=0.0)


def _beside_activations(y: Tensor, right: Tensor) -> float:
    """Return the smallest error against the expected output, with or without an activation; 0 for a small one."""
    found = min(_unlike(y, right), *(_unlike(y, activation(right)) for activation in _ACTIVATIONS))
    return found if found > LIKE else 0.0


def _of_channels(module: nn.Module, x: Tensor, *names: str) -> Tensor | None:
    """Return the first of these tensors with one value for each channel, broadcast along the channels."""
    found = (getattr(module, name, None) for name in names)
    fitting = (each for each in found if isinstance(each, Tensor) and each.numel() == x.shape[1] and not each.is_meta)
    first = next(fitting, None)
    return None if first is None else _along(first.flatten(), x)


@contextmanager
def _state_kept(module: Any) -> Iterator[None]:  # noqa: ANN401 (any norm)
    """Restore running statistics, buffers and modes."""
    held = [(each, dict(vars(each))) for each in module.modules()]  # plain tensors, which some replace at every call
    stored = [each for _, attributes in held for each in attributes.values() if isinstance(each, Tensor)]
    buffers = [(each, each.clone()) for each in (*module.buffers(), *stored)]
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode
        for each, attributes in held:
            vars(each).update(attributes)
        for buffer, before in buffers:
            buffer.copy_(before)


def _called(module: Any, x: Tensor, moments: tuple[Tensor, Tensor], *, training: bool) -> Tensor | None:  # noqa: ANN401
    """Return a layer's output with these running statistics; None if it raises or returns another shape."""
    try:
        for each in module.modules():
            each.training = training
        for name, values in zip(stored_names(module) or (), moments, strict=True):
            stored = getattr(module, name)
            stored.copy_(values.view(stored.shape))
        found = module.forward(x.clone())
    except Exception:  # another package's forward may raise anything
        return None
    return found.detach() if isinstance(found, Tensor) and found.shape == x.shape else None


def _share_alike(y: Tensor, right: Tensor) -> float:
    """Return the fraction of channels with the expected output."""
    off, size = (each.square().transpose(0, 1).flatten(1).mean(1) for each in (y.double() - right, right))
    return float((off <= LIKE**2 * size).double().mean())


def _unlike(y: Tensor, right: Tensor) -> float:
    """Return the root mean square error relative to the expected output; infinite if it is NaN."""
    size = float(right.square().mean().sqrt())
    difference = float((y.double() - right).square().mean().sqrt())
    return math.inf if math.isnan(difference) else difference / max(size, 1e-300)


def formula_of(module: Any) -> Callable[[Tensor], Formula] | None:  # noqa: ANN401 (any norm)
    """Return a function from an input to the formula; None if unknown (unknown classes, gated layers)."""
    if is_batch_norm(module):
        kind = kind_of(module)[0]
        adapter = adapter_of(module)
        overwrites = adapter is not None and adapter.absolute_weight  # InPlace-ABN, whose input is gone
        stored = evaluation_of(module).mean is not None
        if not kind.evaluates_as_batch_norm or kind.name == "masked_batch_norm" or overwrites or not stored:
            return None
        return partial(_of_batch_norm, module)
    if type(module) is nn.GroupNorm:
        return partial(_of_group_norm, module)
    return partial(_of_layer_norm, module) if type(module) is nn.LayerNorm else None


def _of_batch_norm(module: Any, x: Tensor) -> Formula:  # noqa: ANN401 (a batch norm)
    stored = evaluation_of(module)
    mean, var, weight, bias = (
        None if each is None else _along(each, x) for each in (stored.mean, stored.var, stored.weight, stored.bias)
    )
    assert mean is not None and var is not None
    return _formula(mean, var, weight, bias, stored.eps, tail=partial(_tail, module) if has_tail(module) else None)


def _of_group_norm(module: nn.GroupNorm, x: Tensor) -> Formula:
    grouped = x.double().reshape(len(x), module.num_groups, -1)
    size = module.num_channels // module.num_groups
    mean, var = (_along(each.repeat_interleave(size, 1), x) for each in _moments(grouped))
    weight, bias = (None if each is None else _along(each, x) for each in (module.weight, module.bias))
    return _formula(mean, var, weight, bias, module.eps, of_sums=_of_sums(module.weight))


def _of_layer_norm(module: nn.LayerNorm, x: Tensor) -> Formula:
    dims = len(module.normalized_shape)
    mean, var = (each.view(*each.shape, *[1] * dims) for each in _moments(x.double().flatten(-dims)))
    weight, bias = (None if each is None else each.detach().double() for each in (module.weight, module.bias))
    return _formula(mean, var, weight, bias, module.eps, of_sums=_of_sums(module.weight))


def _moments(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over the last dimension; torch.var_mean takes some twenty times as long."""
    mean = wide.mean(-1)
    return mean, (wide - mean.unsqueeze(-1)).square_().mean(-1)


def _formula(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    of_sums: float = 0.0,
    tail: Callable[[Tensor], Tensor] | None = None,
) -> Formula:
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = torch.zeros_like(scale) if bias is None else bias
    return Formula(mean=mean, scale=scale, shift=shift, of_sums=of_sums, tail=tail)


def _parts(x: Tensor) -> Iterator[slice]:
    """Yield slices of the samples with about 2¹⁸ values each."""
    number = max(1, _AT_ONCE * len(x) // max(x.numel(), 1))
    return (slice(first, first + number) for first in range(0, len(x), number))


def _rows(tensor: Tensor, x: Tensor, rows: slice) -> Tensor:
    """Slice the rows of a tensor that has one row for each sample of x."""
    return tensor[rows] if tensor.dim() == x.dim() and len(tensor) == len(x) else tensor


def _excess(y: Tensor, right: Tensor, allowed: Tensor) -> float:
    """Return the largest error beyond rounding, relative to the root mean square of the expected output; 0 for none."""
    error = (y.detach().double() - right).abs()
    beyond = (error > allowed) | (error.isnan() & right.isfinite())
    if not beyond.any():
        return 0.0
    size = float(right[right.isfinite()].square().mean().sqrt())
    return float(error[beyond].nan_to_num(nan=math.inf).max()) / max(size, 1e-300)


def _other_backend(module: nn.Module, expected: Formula, x: Tensor, unit: float) -> float:
    """Return the error of the same layer without cuDNN; 0 if it does not use cuDNN."""
    if not x.is_cuda or not torch.backends.cudnn.enabled:
        return 0.0
    now = torch.backends.cudnn
    with torch.no_grad(), now.flags(enabled=False, benchmark=now.benchmark, deterministic=now.deterministic):
        y = type(module).forward(module, x.clone())
    return _excess(y, expected.output(x), expected.allowed(x, unit))


def _of_sums(weight: Tensor | None) -> float:
    """Return the magnitude that sets a measured mean's rounding error: standard deviation times largest weight."""
    return 1.0 if weight is None or not weight.numel() else float(weight.detach().abs().max())


def has_tail(module: Any) -> bool:  # noqa: ANN401 (a batch norm)
    """Return whether a batch norm runs another module after normalizing, as timm's BatchNormAct2d does."""
    adapter = adapter_of(module)
    return bool(adapter is not None and dict(adapter.tail(module))) or getattr(module, "activation", None) is not None


def _tail(module: Any, y: Tensor) -> Tensor:  # noqa: ANN401 (a batch norm)
    """Apply the modules that the layer runs after normalizing."""
    adapter = adapter_of(module)
    after = [] if adapter is None else list(dict(adapter.tail(module)).values())
    if adapter is None:
        after = [ACTIVATION_MODULES[module.activation]()]
    for each in after:
        y = each(y)
    return y


def _along(values: Tensor, x: Tensor) -> Tensor:
    wide = values.detach().double()
    return wide.view(*(wide.shape if wide.dim() == 2 else (1, -1)), *[1] * (x.dim() - 2))
