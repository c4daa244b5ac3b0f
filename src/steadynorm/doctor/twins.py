"""Find parts of a model that are copies of each other: a teacher, a target network, an average of weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from steadynorm.doctor.evidence import Twins
from steadynorm.surgery.kinds import is_batch_norm

__all__ = ["NEAR", "twins_of"]

NEAR = 0.5
"""Relative distance of weights below which parts are copies; two independent draws are √2 apart."""
_SKETCH = 256
"""Number of values of each weight that are compared first."""


def twins_of(model: nn.Module) -> tuple[Twins, ...]:
    """Find the largest parts whose parameters have the same names and shapes and nearly the same numbers.

    Parts that share a parameter are not copies: separate norms for one set of weights are deliberate.
    """
    alike: dict[object, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        form = _form(module)
        if form:
            alike.setdefault(form, []).append((name, module))
    found: list[Twins] = []
    for group in sorted(alike.values(), key=lambda each: len(each[0][0].split("."))):
        for (first, one), (second, other) in itertools.combinations(group, 2):
            if any(_within(first, pair.first) and _within(second, pair.second) for pair in found):
                continue
            weights = _distance(one, other)
            if weights is not None and weights < NEAR:
                found.append(_twins(first, one, second, other, weights))
    return tuple(found)


def _form(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and shapes of all tensors; empty without running statistics, or without a weight matrix."""
    if not any(_has_statistics(each) for each in module.modules()):
        return ()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if any(is_lazy(each) or each.is_meta for _, each in tensors):
        return ()
    return tuple((name, tuple(each.shape)) for name, each in tensors) if any(True for _ in _weights(module)) else ()


def _has_statistics(module: nn.Module) -> bool:
    return is_batch_norm(module) and isinstance(getattr(module, "running_mean", None), Tensor)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights that random initialization makes different: those of two dimensions or more."""
    return (each.detach() for each in module.parameters() if each.dim() > 1)


def _distance(one: nn.Module, other: nn.Module) -> float | None:
    """Return the relative distance of the weights; None if they share one or tell nothing."""
    pairs = list(zip(_weights(one), _weights(other), strict=True))
    if any(first.data_ptr() == second.data_ptr() or first.shape != second.shape for first, second in pairs):
        return None
    rough = _relative([(first.flatten()[:_SKETCH], second.flatten()[:_SKETCH]) for first, second in pairs])
    return rough if rough is None or not rough < 2 * NEAR else _relative(pairs)


def _relative(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    size = sum(float(first.float().square().sum()) for first, _ in pairs)
    apart = sum(float((first.float() - second.to(first.device).float()).square().sum()) for first, second in pairs)
    return math.sqrt(apart / size) if size > 0 and math.isfinite(apart / size) else None


def _twins(first: str, one: nn.Module, second: str, other: nn.Module, weights: float) -> Twins:
    norms = [name for name, module in one.named_modules() if _has_statistics(module)]
    return Twins(
        first=first,
        second=second,
        weights=weights,
        frozen=any(not any(each.requires_grad for each in part.parameters()) for part in (one, other)),
        norms=tuple((_joined(first, name), _joined(second, name)) for name in norms),
    )


def _joined(parent: str, name: str) -> str:
    return ".".join(part for part in (parent, name) if part)


def _within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")
