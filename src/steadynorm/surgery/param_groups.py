"""Which parameters weight decay is for."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["param_groups"]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's parameters for an optimizer: weight decay for all but norms and biases.

    A norm's weight and bias decide no function's size that the next layer could not undo; decay only moves them. Norms
    are torch's, ours, and any module whose class name has "norm" in it, as model libraries write their own; of those
    the parameters of at most one dimension. Biases are parameters whose name ends in "bias", likewise.

    Args:
        model: the root.
        weight_decay: of the first group; the second has none.

    Returns:
        two groups, each parameter once, also those that require no gradient now: optimizers pass over them, and they
        may be unfrozen. A group without parameters is left out.

    Raises:
        ValueError: negative weight decay.

    Source: He et al. 2019 (arXiv 1812.01187), section 3.1; Goyal et al. 2017 (arXiv 1706.02677), section 5.

    >>> groups = param_groups(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 5e-4)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.0005), (3, 0.0)]
    """
    if weight_decay < 0:
        raise ValueError(f"param_groups: weight_decay must be at least 0, got {weight_decay}.")
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() <= 1 and (_is_norm(module) or name.endswith("bias"))
    }
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in spared]
    others = [parameter for parameter in model.parameters() if id(parameter) in spared]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
