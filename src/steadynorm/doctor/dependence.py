"""Find modules whose output for a sample changes when the rest of its batch is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.surgery.flow.trial import tensors_in

__all__ = ["Trace", "distance", "modules_that_mix", "tracing"]

_SAME = 1e-4
"""Relative difference that rounding explains, in float32."""
_SAMPLES = 2
"""Number of a batch's first samples that are compared."""


@dataclass(kw_only=True, eq=False)
class Trace:
    """Inputs and outputs of each module for the first samples of a batch, in its first call.

    Args:
        samples: number of samples in the batch.
        given: name -> tensors by path; empty where one of them does not count samples along its first dimension.
        gave: name -> output tensors whose first dimension counts samples.
        unit: eps of the coarsest dtype seen.
    """

    samples: int
    given: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    gave: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unit: float = 0.0


@contextmanager
def tracing(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Record the modules' inputs and outputs while a batch runs."""

    def before(name: str, module: nn.Module, arguments: Any, named: Any) -> None:  # noqa: ANN401 (as it takes them)
        if name not in trace.given:
            trace.given[name] = _firsts(trace, (arguments, named), whole=True)

    def after(name: str, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ANN401 (as it gives them)
        if name not in trace.gave:
            trace.gave[name] = _firsts(trace, output)

    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # scripts take no hooks
            handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def modules_that_mix(whole: Trace, two: Trace, again: Callable[[], Trace]) -> tuple[str, ...]:
    """Name the innermost modules whose output for the same samples changes without the rest of the batch.

    Args:
        whole: trace of a batch.
        two: trace of its first two samples.
        again: runs these two once more; what differs there too is random and left out.
    """
    guilty = _otherwise(whole, two)
    if guilty:
        guilty -= _otherwise(two, again())
    return tuple(name for name in guilty if not any(_is_within(other, name) for other in guilty))


def distance(whole: Tensor, part: Tensor) -> float:
    """Return the largest difference for the common samples, relative to the largest magnitude; 0 for none."""
    number = min(len(whole), len(part))
    if whole.shape[1:] != part.shape[1:] or number == 0 or torch.equal(whole[:number], part[:number]):
        return 0.0
    first, second = whole[:number].float(), part[:number].float()
    size = first.abs().nan_to_num(0, 0, 0).max()
    return float((first - second).abs().nan_to_num(0, 0, 0).max() / size) if size > 0 else 0.0


def _otherwise(first: Trace, second: Trace) -> set[str]:
    """Name the modules whose outputs differ although their inputs are the same."""
    same = max(_SAME, 4 * first.unit)
    return {
        name
        for name in first.gave
        if first.given[name].keys() == second.given.get(name, {}).keys() != set()
        and _apart(first.given, second.given, name) <= same < _apart(first.gave, second.gave, name)
    }


def _apart(first: Mapping[str, dict[str, Tensor]], second: Mapping[str, dict[str, Tensor]], name: str) -> float:
    one, other = first[name], second.get(name, {})
    return max((distance(one[path], other[path]) for path in one.keys() & other.keys()), default=0.0)


def _firsts(trace: Trace, values: object, *, whole: bool = False) -> dict[str, Tensor]:
    """Copy the rows of a batch's first samples, of tensors that count samples along their first dimension."""
    found = {path: each for path, each in tensors_in(values) if each.is_floating_point() and each.dim()}
    fitting = {path: each for path, each in found.items() if each.numel() and len(each) % trace.samples == 0}
    if whole and len(fitting) < len(found):
        return {}
    with torch._C.DisableTorchFunction():
        trace.unit = max([trace.unit, *(torch.finfo(each.dtype).eps for each in fitting.values())])
        return {path: each.detach()[: _SAMPLES * len(each) // trace.samples].clone() for path, each in fitting.items()}


def _is_within(name: str, parent: str) -> bool:
    return name != parent and (not parent or name.startswith(f"{parent}."))
