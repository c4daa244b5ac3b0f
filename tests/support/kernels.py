"""The kernels put together as batch norm, beside torch's own result; for whichever implementation of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm.ops.reference import Activation
from tests.support import oracle
from tests.support.cases import Inputs

__all__ = [
    "TORCH",
    "affine_of_batch_norm",
    "assert_as_accurate_as_torchs",
    "assert_kernels_are_as_accurate_as_torchs",
    "gradients_by_kernels",
    "torch_batch_norm",
]

TORCH: dict[Activation | None, Callable[[Tensor], Tensor]] = {
    None: lambda pre: pre,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}


def affine_of_batch_norm(kernels: ModuleType, inputs: Inputs) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What batch norm applies: center, scale, shift; and 1/std."""
    mean, var = kernels.moments(inputs.x)
    rstd = (var + oracle.EPS).rsqrt()
    return (mean, rstd * inputs.weight, inputs.bias), rstd


def gradients_by_kernels(
    kernels: ModuleType, inputs: Inputs, residual: Tensor | None, activation: Activation | None
) -> dict[str, Tensor]:
    """dx, d_residual, dweight and dbias from the sums, with the numbers per channel put in by hand."""
    affine, rstd = affine_of_batch_norm(kernels, inputs)
    common = (inputs.dy, inputs.x, *affine, residual, activation)
    sum_dy, sum_dy_xc = kernels.transform_sums(*common)
    count = inputs.x.numel() / inputs.x.shape[1]
    scale = affine[1]
    dx, d_residual = kernels.transform_grad(
        *common, scale, -scale * rstd**2 * sum_dy_xc / count, -scale * sum_dy / count
    )
    return {"dx": dx, "dresidual": d_residual, "dweight": sum_dy_xc * rstd, "dbias": sum_dy}


def torch_batch_norm(
    inputs: Inputs, residual: Tensor | None, activation: Activation | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """torch's result, and its gradients by the same names."""
    leaves = {"dx": inputs.x, "dweight": inputs.weight, "dbias": inputs.bias}
    leaves |= {} if residual is None else {"dresidual": residual}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in leaves.items()}
    pre = F.batch_norm(leaves["dx"], None, None, leaves["dweight"], leaves["dbias"], True, eps=oracle.EPS)
    y = TORCH[activation](pre if residual is None else pre + leaves["dresidual"])
    gradients = torch.autograd.grad(y, list(leaves.values()), inputs.dy)
    return y, dict(zip(leaves, gradients, strict=True))


def assert_kernels_are_as_accurate_as_torchs(
    kernels: ModuleType, inputs: Inputs, residual: Tensor | None, activation: Activation | None
) -> None:
    """Hold the kernels, put together as batch norm, against the float64 oracle."""
    y = kernels.transform(inputs.x, *affine_of_batch_norm(kernels, inputs)[0], residual, activation)
    gradients = gradients_by_kernels(kernels, inputs, residual, activation)
    assert_as_accurate_as_torchs(y, gradients, inputs, residual, activation)


def assert_as_accurate_as_torchs(
    y: Tensor, gradients: dict[str, Tensor], inputs: Inputs, residual: Tensor | None, activation: Activation | None
) -> None:
    """Hold y and every gradient against the float64 oracle, with torch's own error as the measure."""
    native_y, native = torch_batch_norm(inputs, residual, activation)
    parameters = {"weight": inputs.weight, "bias": inputs.bias, "residual": residual, "activation": activation}
    expected = oracle.batch_norm(inputs.x, **parameters)
    oracle.assert_as_accurate_as(native=native_y, ours=y, oracle=expected.y, what="y")
    exact = oracle.batch_norm_gradients(inputs.dy, inputs.x, **parameters)
    for name, gradient in native.items():
        oracle.assert_as_accurate_as(native=gradient, ours=gradients[name], oracle=getattr(exact, name), what=name)
