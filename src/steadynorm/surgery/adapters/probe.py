"""Check that a foreign norm computes what its adapter says, on a copy of one layer of the class."""

from __future__ import annotations

import copy
import math
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.surgery.adapters.registry import Adapter

__all__ = ["disagreement"]

_FOUND: WeakKeyDictionary[type[nn.Module], tuple[Adapter, str]] = WeakKeyDictionary()
_REFUSALS = (AttributeError, ImportError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_SHAPES = {0: (3, 2), 1: (3,), 2: (3, 2), 3: (2, 3, 2)}


def disagreement(module: nn.Module, adapter: Adapter) -> str:
    """Say how a class differs from its adapter; empty if it agrees. Checked once for each class.

    Args:
        module: one of its instances; not changed.
        adapter: of its class.
    """
    known = _FOUND.get(type(module))
    if known is not None and known[0] is adapter:
        return known[1]
    if not isinstance(getattr(module, "running_mean", None), Tensor):
        return ""  # it uses batch statistics in evaluation, so nothing can be folded or kept
    found = _try(module, adapter)
    _FOUND[type(module)] = adapter, found
    return found


def _try(module: nn.Module, adapter: Adapter) -> str:
    modes = (False, True) if adapter.like == "frozen_batch_norm" else (False,)
    try:
        for training in modes:
            error = _error(module, adapter, training=training)
            if not error <= 1e-5:
                return f"a forward in {'training' if training else 'evaluation'} is off by {error:.2g}"
    except _REFUSALS as problem:
        return f"a forward of a copy on the CPU raises {type(problem).__name__}: {problem}"
    return ""


@torch.no_grad()
def _error(module: nn.Module, adapter: Adapter, *, training: bool) -> float:
    """Return the largest error of a copy's forward, relative to its largest output."""
    norm = _copied(module, training)
    state = norm._parameters | norm._buffers
    mean, var, weight, bias = (state.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
    assert mean is not None
    eps = getattr(norm, adapter.eps) if isinstance(adapter.eps, str) else adapter.eps
    if adapter.absolute_weight and weight is not None:
        weight = weight.abs() + eps
    shape = (2, len(mean), *_SHAPES[adapter.dimensions])
    x = torch.linspace(-2, 3, math.prod(shape), dtype=torch.float64).view(shape)
    expected = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    for each in adapter.tail(norm).values():
        expected = each(expected)
    actual = type(norm).forward(norm, x.clone())
    return float((actual - expected).abs().max() / expected.abs().max())


def _copied(module: nn.Module, training: bool) -> nn.Module:
    """Copy a layer with the probe's own values: a variance as small as eps, weights of either sign."""
    new = copy.copy(module)
    for table in ("_parameters", "_buffers"):
        tensors = {name: None if each is None else _number(name, each) for name, each in getattr(module, table).items()}
        vars(new)[table] = tensors
    new._modules = {name: copy.deepcopy(each) for name, each in module._modules.items()}
    for child in new._modules.values():
        if child is not None:
            child.double().cpu().eval()
    new.training = training
    return new


def _number(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    low, high = (1e-6, 2.0) if name == "running_var" else (-1.5, 2.0)
    return torch.linspace(low, high, tensor.numel(), dtype=torch.float64).view(tensor.shape)
