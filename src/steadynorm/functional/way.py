"""How a training batch is normalized: by torch's own function, by one compiled call, or by a rule between kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from steadynorm.ops.dispatch import choose_backend, records_torchs_own
from steadynorm.ops.reference import Activation
from steadynorm.rules import is_transformed, takes_one_call

__all__ = ["choose_way"]


def choose_way(
    x: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *others: Tensor | None,
    torchs_own: bool = True,
) -> Literal["torch", "one call", "rule"]:
    """Choose how to train: by torch's own function, by one compiled call, or by the rule between kernels.

    By the rule where functions are compiled or transformed, whatever the size: compilers see our operations, transforms
    see torch's.

    Args:
        others: further numbers of the rule; the first arguments are those of the functions.
        torchs_own: whether torch has a function for it, which small tensors are better left to.
    """
    recorded = torchs_own and records_torchs_own(x)
    if (torch.compiler.is_compiling() or is_transformed()) and not recorded:
        return "rule"
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    per_channel = (running_mean, running_var, weight, bias, *others)
    for tensor in per_channel:
        if tensor is not None and tensor.dtype != wide:
            return "rule"
    if (running_mean is None) != (running_var is None) or (residual is not None and residual.dtype != x.dtype):
        return "rule"
    if recorded:
        return "torch"
    fused = activation is not None or residual is not None
    chosen = choose_backend(x, residual, fused=fused, torchs_own=torchs_own)
    if chosen == "numba" and takes_one_call(x, *per_channel):
        return "one call"
    return "torch" if chosen == "torch" else "rule"
