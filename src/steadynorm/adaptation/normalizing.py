"""Forwards in which layers normalize by other moments than their running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steadynorm.statistics import Moments
from steadynorm.surgery.batches import evaluating
from steadynorm.surgery.contexts import replaced_forwards
from steadynorm.surgery.kinds import Norm
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["Choose", "normalizing_by", "stored_moments"]

Choose = Callable[[str, Tensor, Moments], Moments]
"""Name of a layer, its input (N, C, ...), its stored moments -> the moments by which it is to normalize."""


@contextmanager
def normalizing_by(model: nn.Module, choose: Choose) -> Iterator[None]:
    """Let the model evaluate without gradient, each batch norm by the moments that ``choose`` gives for its input.

        y = activation( (x − mean) / √(var + eps) · weight + bias + residual )

    Layers are torch's or ours; for a layer with two parents, ``choose`` is called at each of its calls with its first
    name. Weights, running statistics, counters and modes are the same bits afterwards, also after an exception.

    Raises:
        ValueError: a layer has no running statistics.
    """
    forwards: dict[nn.Module, Any] = {}
    for name, module in _layers(model).items():
        forwards[module] = _By(module, name, choose)
    with evaluating(model), replaced_forwards(forwards):
        yield


def stored_moments(model: nn.Module) -> dict[str, Moments]:
    """Return copies of the running statistics by layer name; their count is 0, which means unknown.

    Raises:
        ValueError: a layer has no running estimates.
    """
    stored = {name: _stored(module) for name, module in _layers(model).items()}
    return {name: Moments(mean=each.mean.clone(), var=each.var.clone(), count=0) for name, each in stored.items()}


def _layers(model: nn.Module) -> dict[str, Norm]:
    layers = {named.name: named.module for named in batch_norms_of(model)}
    without = [name for name, module in layers.items() if module.running_mean is None]
    if without:
        raise ValueError(
            f"adaptation: every batch norm must have running statistics, got {', '.join(without)} without. Train with "
            "track_running_stats=True."
        )
    return layers


def _stored(module: Norm) -> Moments:
    return Moments(mean=module.running_mean, var=module.running_var, count=0)


class _By:
    """Replaces a batch norm's forward: evaluates with other running estimates."""

    def __init__(self, module: Norm, name: str, choose: Choose) -> None:
        self.module, self.name, self.choose = module, name, choose

    def __call__(self, input: Tensor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes them)
        module, stored = self.module, _stored(self.module)
        chosen = self.choose(self.name, input, stored)
        try:
            module._buffers["running_mean"] = chosen.mean.to(stored.mean.dtype)
            module._buffers["running_var"] = chosen.var.to(stored.var.dtype)
            return type(module).forward(module, input, *arguments, **named)
        finally:
            module._buffers["running_mean"], module._buffers["running_var"] = stored.mean, stored.var
