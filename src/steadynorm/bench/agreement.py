"""Compare results with float64 on each case before it is timed: no speed without agreement."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steadynorm.bench.providers import Inputs
from steadynorm.ops import reference
from steadynorm.ops.reference import Activation

__all__ = ["Agreement", "check_agreement", "difference_to_float64", "relative_difference"]

EPS, MOMENTUM = 1e-5, 0.1  # the layers' defaults
KINK_MARGIN = 0.05  # if y before the ReLU is nearer to 0, rounding may decide its slope
FLOOR_ULPS = 8
CHUNK = 1 << 23  # values in float64 at a time

Results = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The result nearest to its limit, or furthest beyond it."""

    what: str
    error: float
    """Largest difference to the float64 reference; infinite if dtype or strides are not torch's."""
    allowed: float
    """Twice torch's own largest difference, and eight units in the last place of the largest value."""

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the limit; False for NaN."""
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """The difference as a multiple of its limit."""
        if self.agrees:
            return self.error / self.allowed if self.allowed else 0.0
        return math.inf if math.isnan(self.error) or not self.allowed else self.error / self.allowed


@torch.no_grad()
def check_agreement(ours: nn.Module, native: nn.Module, inputs: Inputs, activation: Activation | None) -> Agreement:
    """Compare y, every gradient and both running statistics after one training step.

    The gradient that goes in is zero where the slope of the activation depends on rounding.

    Args:
        ours: changed by the step, like ``native``: torch's own layer, with equal parameters.
        native: its error is the measure.
        inputs: left unchanged.
        activation: activation after both norms.
    """
    inputs = replace(inputs, dy=inputs.dy.clone())
    weight, bias = (parameter.detach().clone() for parameter in ours.parameters())
    problem = _Problem(inputs.dy, inputs.x.detach(), inputs.residual, weight, bias)
    if activation is not None:
        for channels in _chunks(problem.x):
            pre = _forward(problem.of(channels), None)[0]
            inputs.dy[:, channels].masked_fill_(pre.abs() < KINK_MARGIN, 0)
    found, measure = (_one_step(module, inputs) | _running(module) for module in (ours, native))
    sizes: dict[str, Tensor] = {}
    for channels in _chunks(problem.x):
        for what, (truth, size) in _expected(problem.of(channels), activation).items():
            errors = [(_take(results[what], channels) - truth).abs().max() for results in (found, measure)]
            largest = torch.stack([*errors, size.abs().max()])
            sizes[what] = torch.maximum(sizes.get(what, largest), largest)  # which propagates NaN
    return max((_judge(what, found[what], measure[what], sizes[what]) for what in sizes), key=lambda one: one.excess)


@torch.no_grad()
def difference_to_float64(module: nn.Module, inputs: Inputs) -> float:
    """Return the largest difference between a layer's training step and its own in float64, over the largest value.

    The gradient that goes in is zero where the slope of the activation depends on rounding.

    Args:
        module: left unchanged.
        inputs: left unchanged.
    """
    wide, x = copy.deepcopy(module).double(), inputs.x.detach().double()
    dy = inputs.dy * (copy.deepcopy(wide)(x).abs() > KINK_MARGIN)
    found = _one_step(copy.deepcopy(module), replace(inputs, dy=dy))
    expected = _one_step(wide, replace(inputs, x=x.requires_grad_(), dy=dy.double()))
    tiny = torch.finfo(torch.float32).tiny
    errors = [(found[what] - truth).abs().max() / truth.abs().max().clamp(min=tiny) for what, truth in expected.items()]
    return float(torch.stack(errors).max())  # NaN is the largest


def relative_difference(native: Sequence[float], ours: Sequence[float]) -> float:
    """Return the largest relative difference in float32; infinite if a value is not finite."""
    found = [abs(b - a) / abs(a) for a, b in zip(native, ours, strict=True)]
    return max(found) if all(map(math.isfinite, found)) else math.inf


def _judge(what: str, ours: Tensor, native: Tensor, sizes: Tensor) -> Agreement:
    error, native_error, size = sizes.tolist()
    allowed = 2 * native_error + FLOOR_ULPS * torch.finfo(native.dtype).eps * size
    return Agreement(what=what, error=error if _kind(ours) == _kind(native) else math.inf, allowed=allowed)


def _kind(tensor: Tensor) -> tuple[torch.dtype, list[int]]:
    """Return dtype and strides; a dimension of size 1 may have any stride."""
    return tensor.dtype, [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


class _Problem(NamedTuple):
    """Values at the start of a step."""

    dy: Tensor
    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor

    def of(self, channels: slice) -> _Problem:
        """Take some channels, in float64."""
        return _Problem(*(each if each is None else _take(each, channels) for each in self))  # type: ignore[arg-type]


def _chunks(x: Tensor) -> Iterator[slice]:
    """Split the channels, which no result mixes."""
    together = max(1, CHUNK * x.shape[1] // x.numel())
    for start in range(0, x.shape[1], together):
        yield slice(start, start + together)


def _take(tensor: Tensor, channels: slice) -> Tensor:
    """Return some channels of shape (C,) or (N, C, H, W) in float64."""
    return (tensor[channels] if tensor.dim() == 1 else tensor[:, channels]).double()


@torch.enable_grad()
def _one_step(module: nn.Module, inputs: Inputs) -> Results:
    """Return y and the gradients of input, residual, weight and bias, by name."""
    y = module(*inputs.given)
    leaves = {"dx": inputs.x} | ({} if inputs.residual is None else {"d_residual": inputs.residual})
    parameters = {path.rpartition(".")[2]: one for path, one in module.named_parameters() if one.requires_grad}
    # A gate's confidence is left out: its gradient is a sum that nearly cancels.
    leaves |= {f"d{name}": parameters[name] for name in ("weight", "bias") if name in parameters}
    gradients = torch.autograd.grad(y, list(leaves.values()), inputs.dy)
    return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


def _running(module: nn.Module) -> Results:
    buffers = {path.rpartition(".")[2]: buffer for path, buffer in module.named_buffers()}
    return {name: buffers[name] for name in ("running_mean", "running_var")}


def _forward(problem: _Problem, activation: Activation | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, mean, var and 1/std."""
    mean, var = reference.moments(problem.x)
    rstd = (var + EPS).rsqrt()
    y = reference.transform(problem.x, mean, rstd * problem.weight, problem.bias, problem.residual, activation)
    return y, mean, var, rstd


def _expected(problem: _Problem, activation: Activation | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each result and the scale of its rounding error, by the reference's kernels and batch norm's statistics.

    The scale is the result itself, and for the mean the root mean square of its summands, which may cancel.
    """
    y, mean, var, rstd = _forward(problem, activation)
    scale, count = rstd * problem.weight, problem.x.numel() / problem.x.shape[1]
    common = (problem.dy, problem.x, mean, scale, problem.bias, problem.residual, activation)
    sum_dy, sum_dy_xc = reference.transform_sums(*common)
    b, c = -scale * rstd**2 * sum_dy_xc / count, -scale * sum_dy / count
    dx, d_residual = reference.transform_grad(*common, scale, b, c)
    results = {"y": y, "dx": dx, "dweight": sum_dy_xc * rstd, "dbias": sum_dy}
    results |= {} if d_residual is None else {"d_residual": d_residual}
    results["running_var"] = 1 - MOMENTUM + MOMENTUM * var * count / (count - 1)
    expected = {what: (result, result) for what, result in results.items()}
    return expected | {"running_mean": (MOMENTUM * mean, MOMENTUM * (mean**2 + var).sqrt())}
