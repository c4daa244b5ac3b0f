"""Collect evidence from a model, and leave the model unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from steadynorm.doctor.batch_evidence import Runs
from steadynorm.doctor.checkpointing import run_again
from steadynorm.doctor.elsewhere import Ranks, compare_checkpoint, gather_ranks
from steadynorm.doctor.evidence import Evidence, ModuleState, NormState, OptimizerState, Step
from steadynorm.doctor.parity import AFFINE_NAMES
from steadynorm.doctor.per_sample import takes_gradients_per_sample
from steadynorm.doctor.runs import run_batches, run_reference
from steadynorm.doctor.score import Measure
from steadynorm.doctor.twins import twins_of
from steadynorm.doctor.untouched import untouched
from steadynorm.layers.base import BatchNormBase
from steadynorm.surgery.batches import Batches, Forward, feed, unwrapped
from steadynorm.surgery.flow.dataflow import LAYERS
from steadynorm.surgery.hidden import held_norms
from steadynorm.surgery.kinds import (
    adapter_of,
    channels_of,
    eps_of,
    evaluation_of,
    is_batch_norm,
    kind_of,
    label,
    listed_class,
    stored_names,
    why_unknown,
)
from steadynorm.surgery.named_modules import named_modules_of

__all__ = ["observe"]

_ACTIVATIONS = frozenset(
    name for name in vars(torch.nn.modules.activation) if not name.startswith("_") and name != "MultiheadAttention"
)
_SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)


def observe(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    forward: Forward | None = None,
    loss: Measure | None = None,
    metric: Measure | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    reference: Iterable[Any] | None = None,
    checkpoint: Mapping[str, Any] | nn.Module | None = None,
    ranks: Ranks | None = None,
    accumulation: int | None = None,
    world_size: int | None = None,
) -> Evidence:
    """Collect the evidence that the doctor's checks read: the modules, and what batches show of them.

    The model is left unchanged, bit for bit.

    Args:
        model: the root module, in any mode, wrapped or not.
        batches: at most eight are used; without them the model is not run.
        forward: (model, batch) -> output: how to run the model on a batch; see :func:`steadynorm.surgery.recalibrate_`.
        loss: (output, batch) -> a number where less is better, averaged over the batch. With neither loss nor metric,
            cross-entropy is used if output and batch look like a classifier's (logits (N, K, ...) and, as the batch's
            second item, labels or class probabilities), else the output's own ``loss`` (Hugging Face models), else
            nothing is scored.
        metric: (output, batch) -> a number where more is better, such as :func:`steadynorm.doctor.accuracy`; findings
            use the function's name.
        optimizer: the model's optimizer.
        reference: batches on which the model is known to be good, such as validation data.
        checkpoint: a state that the model should equal: a state dict, a loaded checkpoint or a module.
        ranks: a state dict of every rank; or the process group, and then every rank must call this, or it hangs.
        accumulation: number of forwards of a worker per optimizer step.
        world_size: number of workers; None asks torch.distributed.

    Returns:
        the Evidence, which shares no tensor with the model.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``batches`` is empty; the checkpoint has none of the model's names.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"observe: model must be a torch.nn.Module, got {type(model).__name__}.")
    plain = unwrapped(model)
    norms = [_norm(named.name, named.module) for named in named_modules_of(plain) if _is_norm(named.module)]
    norms += [_norm(path, module, hidden=True) for path, module in held_norms(plain).items()]
    run = forward or feed
    twins = twins_of(plain)
    runs = None if batches is None else _run(partial(run_batches, twins=twins), plain, batches, run, loss, metric)
    known = None if reference is None else _run(run_reference, plain, reference, run, loss, metric)
    return Evidence(
        norms=tuple(norms),
        modules=tuple(_modules(plain)),
        training=model.training,
        optimizer=None if optimizer is None else _optimizer(plain, optimizer),
        batches=runs,
        reference=known,
        checkpoint=None if checkpoint is None else compare_checkpoint(plain, norms, checkpoint),
        ranks=None if ranks is None else gather_ranks(plain, norms, ranks),
        step=_step(accumulation, world_size),
        twins=twins,
        averaged=type(model).__name__ == "AveragedModel" and getattr(model, "use_buffers", None) is False,
        unread=(*_without_numbers(plain), *(() if runs is None else runs.unread)),
    )


def _run(
    runs: Callable[..., Runs],
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward,
    loss: Measure | None,
    metric: Measure | None,
) -> Runs:
    source = Batches(batches, "diagnose")
    with untouched(model), source.randomness_kept(model):
        return runs(model, source, forward, loss=loss, metric=metric)


def _step(accumulation: int | None, world_size: int | None) -> Step | None:
    """Build the step; without ``world_size``, use the default process group's size."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None and distributed:
        world_size = torch.distributed.get_world_size()
    if accumulation is None and world_size is None:
        return None
    return Step(accumulation=accumulation or 1, world_size=world_size or 1)


def _without_numbers(model: nn.Module) -> Iterator[str]:
    """Describe the norms whose running statistics are on the meta device."""
    for named in named_modules_of(model):
        stored = getattr(named.module, "running_mean", None)
        if _is_norm(named.module) and isinstance(stored, Tensor) and stored.is_meta:
            yield f"the statistics of {named.name or '(the model)'}, which are on the meta device. Load the weights."


def _is_norm(module: nn.Module) -> bool:
    others = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
    return isinstance(module, others) or is_batch_norm(module) or why_unknown(module) is not None


def _norm(name: str, module: Any, *, hidden: bool = False) -> NormState:  # noqa: ANN401 (any norm)
    known = is_batch_norm(module)
    unknown = "" if known else why_unknown(module) or ""
    kind = _kind(module, known)
    names = stored_names(module) or ("running_mean", "running_var")
    affine = [_first_tensor(module, each) for each in AFFINE_NAMES]
    mean, var, weight, bias = map(_copy, (*(getattr(module, each, None) for each in names), *affine))
    if known:
        weight = _copy(evaluation_of(module).weight)
    stored = getattr(module, names[1], None)
    counter = getattr(module, "num_batches_tracked", None)
    momentum = getattr(module, "momentum", None)
    tracks = bool(getattr(module, "track_running_stats", True))
    fixed = not (isinstance(module, BatchNormBase) and module.running == "self_tuned") and hasattr(module, "momentum")
    frozen = kind == "frozen_batch_norm"
    return NormState(
        name=name,
        label=label(module),
        kind=kind,
        unknown=unknown if kind != "instance_norm" else "",
        hidden=hidden,
        training=module.training,
        tracks=tracks,
        moves=module.training and tracks and mean is not None and not frozen,
        momentum=None if momentum is None else float(momentum),
        has_momentum=fixed and momentum is not None and mean is not None and not frozen,
        eps=eps_of(module) if known else float(getattr(module, "eps", 0.0)),
        mean=mean,
        var=var,
        weight=weight,
        bias=bias,
        learns=any(isinstance(each, Tensor) and each.requires_grad for each in affine),
        affine=any(isinstance(each, nn.Parameter) for each in affine),
        dtype=stored.dtype if isinstance(stored, Tensor) else None,
        batches=int(counter) if isinstance(counter, Tensor) and counter.numel() == 1 and not counter.is_meta else None,
        groups=int(module.num_groups) if isinstance(module, nn.GroupNorm) else 0,
        channels=_channels(module, known),
        tail=_tail(module) if known else (),
    )


def _tail(module: nn.Module) -> tuple[str, ...]:
    """Name the modules that another package's norm runs after normalizing, without identities."""
    adapter = adapter_of(module)
    after = {} if adapter is None else adapter.tail(module)
    return tuple(name for name, each in after.items() if type(each) is not nn.Identity)


def _kind(module: nn.Module, known: bool) -> str:
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return "instance_norm"
    return kind_of(module)[0].name if known or listed_class(type(module)) is not None else "unknown"


def _channels(module: Any, known: bool) -> int:  # noqa: ANN401 (any norm)
    if known:
        return channels_of(module)
    return int(getattr(module, "num_features", 0) or getattr(module, "num_channels", 0) or 0)


def _first_tensor(module: nn.Module, names: Sequence[str]) -> Tensor | None:
    """Return the first of these attributes that is a tensor."""
    found = (getattr(module, name, None) for name in names)
    return next((each for each in found if isinstance(each, Tensor)), None)


def _copy(value: object) -> Tensor | None:
    """Return a copy in float64 on the CPU, scalars with shape (1,); None for anything without values."""
    if not isinstance(value, Tensor) or value.is_meta or nn.parameter.is_lazy(value) or value.layout != torch.strided:
        return None
    copied = value.detach().to("cpu", torch.float64, copy=True)
    return copied if copied.dim() else copied.unsqueeze(0)


def _modules(model: nn.Module) -> Iterator[ModuleState]:
    following = {
        id(first): name
        for parent_name, parent in model.named_modules()
        for (_, first), (name, _) in itertools.pairwise(_in_sequence(parent_name, parent))
    }
    again = run_again(model)
    for named in named_modules_of(model):
        module = named.module
        yield ModuleState(
            name=named.name,
            label=label(module),
            kind=_module_kind(module),
            training=module.training,
            bias=isinstance(module, LAYERS) and module.bias is not None,
            probability=float(module.p) if isinstance(module, _DropoutNd) else 0.0,
            following=following.get(id(module), ""),
            last=inside[-1][0] if (inside := _in_sequence(named.name, module)) else "",
            checkpoints=module in again,
            per_sample=takes_gradients_per_sample(module),
        )


def _in_sequence(name: str, parent: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of an nn.Sequential with their names, in order, without identities."""
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
        return []
    return [
        (f"{name}.{key}" if name else key, child)
        for key, child in parent._modules.items()
        if child is not None and type(child) is not nn.Identity
    ]


def _module_kind(module: nn.Module) -> str:
    if isinstance(module, LAYERS):
        return "linear"
    if _is_norm(module):
        return "norm"
    if isinstance(module, _DropoutNd):
        return "dropout"
    if type(module).__name__ in _ACTIVATIONS:
        return "activation"
    return "shape" if isinstance(module, _SHAPES) else "other"


def _optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, shrinks, moved = {}, {}, set[str]()
    for group in optimizer.param_groups:
        each = float(group.get("weight_decay", 0.0))
        rate = max(float(group.get("lr", 0.0)), float(group.get("initial_lr", 0.0)))
        momentum = float(group.get("momentum", 0.0))
        for name in (names[id(parameter)] for parameter in group["params"] if id(parameter) in names):
            decay[name] = each
            moved |= {name} if rate else set()
            shrinks[name] = rate * each / (1 - momentum) if 0 <= momentum < 1 else rate * each
    private = type(optimizer).__name__.endswith("DPOptimizer")  # Opacus's, distributed or not
    return OptimizerState(decay=decay, shrinks=shrinks, moved=frozenset(moved), per_sample=private)
