"""Examine one batch in evaluation: each norm's inputs and outputs, and the outputs for its first two samples."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from steadynorm.doctor.axes import CUT, FeatureAxes
from steadynorm.doctor.batch_evidence import Parity
from steadynorm.doctor.dependence import Trace, distance, modules_that_mix, tracing
from steadynorm.doctor.parity import formula_of, parity_beside_hooks, parity_of, parity_of_unknown
from steadynorm.surgery.batches import Forward
from steadynorm.surgery.flow.trial import tensors_in
from steadynorm.surgery.kinds import stored_names, why_unknown
from steadynorm.surgery.named_modules import NamedModule

_CALLED = re.compile("mean|var|std")
"""Substrings of the names of running statistics."""
_LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
_SHORT = 64
"""Values of a sequence that are few."""
__all__ = ["FirstBatch", "first_samples", "look_closely"]


@dataclass(frozen=True, kw_only=True)
class FirstBatch:
    """Evidence from one batch; its fields are those of :class:`steadynorm.doctor.batch_evidence.Runs`."""

    moved: tuple[str, ...]
    dependent: tuple[str, ...]
    dependence: float
    parity: dict[str, Parity]
    axes: dict[str, int]
    misled: dict[str, tuple[tuple[int, ...], int]]
    flattened: dict[str, int]
    dropout: dict[str, float]
    raw: tuple[str, ...]
    single: tuple[str, ...]
    maps: tuple[str, ...]
    linear_calls: int


@dataclass(kw_only=True, eq=False)
class _Seen:
    """Evidence from one forward."""

    output: Any = None
    calls: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    misled: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    flattened: dict[str, int] = field(default_factory=dict)
    dropout: dict[str, float] = field(default_factory=dict)
    raw: list[str] = field(default_factory=list)
    linear_calls: Counter[nn.Module] = field(default_factory=Counter)


def look_closely(
    model: nn.Module,
    norms: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
    watched: AbstractContextManager[None],
    unread: list[str],
) -> tuple[Any, FirstBatch]:
    """Run a batch and its first two samples; return the batch's output and the evidence.

    Args:
        model: in evaluation, without gradient.
        norms: every norm, batch norms or others.
        batch: as the loader gives it.
        forward: runs the model on it.
        watched: context for the run of the whole batch.
        unread: gets a line if the model does not accept the two samples.
    """
    held = {**dict(model.named_modules()), **{named.name: named.module for named in norms}}
    before = {name: _statistics(module) for name, module in held.items()}
    trace = Trace(samples=max(1, samples_of(batch)))
    whole = _run(model, norms, batch, forward, watched, trace)
    moved = tuple(name for name, module in held.items() if _differ(before[name], _statistics(module)))
    dependent: tuple[str, ...] = ()
    dependence = 0.0
    two = first_samples(batch, 2)
    if two is not None:
        try:
            dependent, dependence = _dependent(model, trace, whole.output, two, forward)
        except Exception as error:  # it cannot be cut in two by its tensors, or its forward asserts a size
            unread.append(f"outputs that depend on the batch: on two samples of one, {type(error).__name__}: {error}")
    return whole.output, FirstBatch(
        moved=moved,
        dependent=dependent,
        dependence=dependence,
        parity=whole.parity,
        axes=whole.axes,
        misled=whole.misled,
        flattened=whole.flattened,
        dropout=whole.dropout,
        raw=tuple(whole.raw),
        single=tuple(named.name for named in norms if _has_single(named.module, whole.calls[named.name])),
        maps=tuple(named.name for named in norms if _has_maps(named.module, whole.calls[named.name])),
        linear_calls=max(whole.linear_calls.values(), default=0),
    )


def _run(
    model: nn.Module,
    norms: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
    watched: AbstractContextManager[None],
    trace: Trace,
) -> _Seen:
    """Record each norm's inputs and outputs call by call, and the other evidence of a run."""
    seen = _Seen(calls={named.name: [] for named in norms})
    formulas = {named.name: formula_of(named.module) for named in norms}
    unknown = {named.name for named in norms if why_unknown(named.module) is not None}
    axes = FeatureAxes()
    plain = {named.name for named in norms if not named.module._forward_hooks and not named.module._forward_pre_hooks}
    given = {id(each) for _, each in tensors_in(batch)}

    def before(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0] if arguments else None
        if isinstance(x, Tensor):
            axis = axes.of(x)
            if axis is not None:
                if axis != 1:
                    seen.axes.setdefault(name, axis)
                if _is_misled(module, x, axis):
                    seen.misled.setdefault(name, (tuple(x.shape), axis))
            if probability := axes.dropout_of(x):
                seen.dropout.setdefault(name, probability)
            if id(x) in given:
                seen.raw.append(name)

    def after(name: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        if not arguments or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
            return
        x = arguments[0].detach()
        seen.calls[name].append((x, output.detach()))
        axes.note(name, arguments[0], output)
        alone = len(arguments) == 1  # no residual
        if alone and len(seen.calls[name]) == 1 and not module.training:
            formula = formulas[name]
            with torch._C.DisableTorchFunction():
                if name in unknown:
                    found = parity_of_unknown(module, x, output) if name in plain else None
                elif name not in plain:
                    found = None if formula is None else parity_beside_hooks(formula(x), x, output.detach())
                else:
                    found = None if formula is None else parity_of(module, formula, x, output)
            if found is not None:
                seen.parity[name] = found

    hooked = [named for named in norms if not isinstance(named.module, torch.jit.ScriptModule)]  # scripts take none
    handles = [named.module.register_forward_hook(partial(after, named.name)) for named in hooked]
    handles += [named.module.register_forward_pre_hook(partial(before, named.name)) for named in hooked]
    linear = [module for module in model.modules() if isinstance(module, _LINEAR)]
    handles += [each.register_forward_pre_hook(lambda one, _: seen.linear_calls.update([one])) for each in linear]
    try:
        with tracing(model, trace), watched, axes:
            seen.output = forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    seen.flattened = axes.flattened
    return seen


def _dependent(
    model: nn.Module,
    whole: Trace,
    output: Any,  # noqa: ANN401 (as the model gives it)
    two: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
) -> tuple[tuple[str, ...], float]:
    """Name the modules whose output for two samples depends on the rest of the batch, and measure the effect."""

    def traced() -> tuple[Trace, Any]:
        trace = Trace(samples=samples_of(two))
        with tracing(model, trace):
            return trace, forward(model, two)

    trace, other = traced()
    first, second = (_first_tensor(each) for each in (output, other))
    dependence = 0.0 if first is None or second is None else distance(first, second)
    return modules_that_mix(whole, trace, lambda: traced()[0]), dependence


def _first_tensor(output: object) -> Tensor | None:
    return next((each for _, each in tensors_in(output) if each.is_floating_point() and each.dim()), None)


def _is_misled(module: nn.Module, x: Tensor, axis: int) -> bool:
    """Return whether a group or layer norm takes another axis of the same size for the features' axis.

    Classes with a forward of their own may transpose, as LayerNorm2d of timm and torchvision does.
    """
    own = type(module).forward
    if isinstance(module, nn.GroupNorm) and own is nn.GroupNorm.forward:
        taken = 1
    elif isinstance(module, nn.LayerNorm) and own is nn.LayerNorm.forward and len(module.normalized_shape) == 1:
        taken = x.dim() - 1
    else:
        return False
    return axis not in (CUT, taken) and x.shape[axis] == x.shape[taken]


def _has_single(module: nn.Module, calls: Sequence[tuple[Tensor, Tensor]]) -> bool:
    if isinstance(module, nn.LayerNorm):
        return math.prod(module.normalized_shape) == 1 and bool(calls)
    return isinstance(module, nn.GroupNorm) and any(x[:1].numel() == module.num_groups for x, _ in calls)


def _has_maps(module: nn.Module, calls: Sequence[tuple[Tensor, Tensor]]) -> bool:
    shapes = [x.shape[2:] for x, _ in calls]
    return isinstance(module, nn.GroupNorm) and any(len(each) > 1 or 1 < each.numel() <= _SHORT for each in shapes)


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    """Copy running statistics, and buffers named as a mean, a variance or a deviation.

    Other plain tensors are ignored: some store measurements of the last input.
    """
    held = {name: getattr(module, name, None) for name in stored_names(module) or ("running_mean", "running_var")}
    held |= {name: each for name, each in module.named_buffers(recurse=False) if _CALLED.search(name)}
    return {
        name: each.detach().clone()
        for name, each in held.items()
        if isinstance(each, Tensor) and each.is_floating_point()
    }


def _differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Return whether a tensor of the same shape has changed its values."""
    pairs = ((first[name], second[name]) for name in first.keys() & second.keys())
    return any(a.shape == b.shape and not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)


def first_samples(batch: Any, number: int) -> Any:  # noqa: ANN401 (as the loader gives it)
    """Return the first samples of a batch; None if it has no more than this number."""
    of = samples_of(batch)
    if number >= of:
        return None

    def is_samples(node: object) -> bool:
        return isinstance(node, list | tuple) and len(node) == of and node is not batch

    def part(leaf: Any) -> Any:  # noqa: ANN401 (any leaf of a batch)
        return leaf[:number] if is_samples(leaf) or (isinstance(leaf, Tensor) and leaf.dim()) else leaf

    return tree_map(part, batch, is_leaf=is_samples)


def samples_of(batch: object) -> int:
    """Return the number of samples in a batch; 0 if it has no tensors."""
    return min((len(each) for _, each in tensors_in(batch) if each.dim()), default=0)
