"""Split parameters by weight decay."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

__all__ = ["param_groups"]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_MAPS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, _ConvNd)
_NAMED_NORM = re.compile(r"(?i:norm)|(?:^|[a-z0-9_])(?:A?BN|GN|LN|IN|GRN|FRN)(?:_?\dd)?$")
"""``FrozenBatchNorm2d``, ``RMSNorm``, ``InPlaceABN``, ``GRN``, ``SyncBN2d``."""


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's parameters into two optimizer groups: weight decay for all but norms and biases.

    The next layer can undo any scale of a norm's weight and bias, so decaying them does not regularize the function. No
    weight decay is applied to:

    - ``weight`` and ``bias`` of torch's norms, ours, and their subclasses, of any shape;
    - vectors of other normalization layers: modules with ``running_mean`` and ``running_var``, or whose class name
      contains "norm" or ends in an abbreviation (BN, ABN, GN, LN, IN, GRN, FRN, optionally with 2d or similar), except
      subclasses of linear, convolutional and embedding layers;
    - vectors whose name ends in "bias".

    A vector has at most one dimension with more than one element: (C,), (1, C, 1, 1). Parameters of lazy modules have
    no shape yet and are split by these names alone; they remain the same objects once initialized.

    Args:
        model: the root module.
        weight_decay: of the first group, finite and at least 0; the second group has 0.

    Returns:
        two groups that contain each parameter once, including those that require no gradient, which optimizers skip. An
            empty group is left out.

    Raises:
        TypeError: ``model`` is not a module; ``weight_decay`` is not a number.
        ValueError: ``weight_decay`` is negative, NaN or infinite.

    Source: He et al. 2019 (arXiv 1812.01187), section 3.1; Goyal et al. 2017 (arXiv 1706.02677), section 5.

    >>> groups = param_groups(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 5e-4)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.0005), (3, 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"param_groups: model must be a torch.nn.Module, got {type(model).__name__}. Pass the model, not its "
            "parameters: only modules tell which of them belong to a norm."
        )
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, Real):
        raise TypeError(f"param_groups: weight_decay must be a number, such as 5e-4, got {weight_decay!r}.")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"param_groups: weight_decay must be at least 0 and finite, got {weight_decay}.")
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_spared(module, name, parameter)
    }
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in spared]
    others = [parameter for parameter in model.parameters() if id(parameter) in spared]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _is_spared(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(module, _NORMS) and name in ("weight", "bias"):
        return True
    return (name.endswith("bias") or _is_norm(module)) and _is_vector(parameter)


def _is_vector(parameter: nn.Parameter) -> bool:
    return is_lazy(parameter) or sum(size > 1 for size in parameter.shape) <= 1


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, _NORMS) or {"running_mean", "running_var"} <= set(module._buffers.keys()):
        return True
    return not isinstance(module, _MAPS) and _NAMED_NORM.search(type(module).__name__) is not None
