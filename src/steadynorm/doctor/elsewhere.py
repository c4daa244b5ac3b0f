"""Evidence from outside the model: a checkpoint, and its running statistics on other ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn

from steadynorm.doctor.compared import apart
from steadynorm.doctor.evidence import CheckpointState, NormState, RankStatistics
from steadynorm.statistics import Moments
from steadynorm.surgery.checkpoints import state_for, why_no_numbers

__all__ = ["Ranks", "compare_checkpoint", "gather_ranks"]

Ranks = Union[Sequence[Mapping[str, Any]], "torch.distributed.ProcessGroup"]
"""A state dict of every rank, or the process group whose ranks all call."""
_STATISTICS = ("running_mean", "running_var")


def compare_checkpoint(
    model: nn.Module, norms: Sequence[NormState], checkpoint: Mapping[str, Any] | nn.Module
) -> CheckpointState:
    """Compare a checkpoint, in any saved form, with a model.

    Raises:
        TypeError: it is not a mapping.
        ValueError: it has none of the model's names.
    """
    state = state_for(model, checkpoint, verb="diagnose")
    own = {name: each for name, each in model.state_dict().items() if isinstance(each, Tensor)}
    pairs = {name: (own[name], each) for name, each in state.tensors.items()}
    misshapen = {
        name: f"{tuple(each.shape)} in the checkpoint, {tuple(mine.shape)} in the model"
        for name, (mine, each) in pairs.items()
        if mine.shape != each.shape
    }
    readable = {
        name: (mine, each)
        for name, (mine, each) in pairs.items()
        if name not in misshapen and why_no_numbers(mine) is None and why_no_numbers(each) is None
    }
    others = {
        name: pair
        for name, pair in readable.items()
        if name.rpartition(".")[2] not in (*_STATISTICS, "num_batches_tracked")
    }
    different = [name for name, (mine, each) in others.items() if not _is_same(mine, each)]
    return CheckpointState(
        missing=state.missing,
        unknown=state.unknown,
        misshapen=misshapen,
        different=tuple(different),
        compared=len(others),
        matrices=sum(mine.dim() > 1 for mine, _ in others.values()),
        apart={name: _relative(*map(_wide, others[name])) for name in different if others[name][0].dim() > 1},
        moved=dict(_moved(norms, readable)),
    )


def _moved(norms: Sequence[NormState], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[tuple[str, float]]:
    for norm in norms:
        mean, var = (f"{norm.name}.{each}" if norm.name else each for each in _STATISTICS)
        if mean not in pairs or var not in pairs or all(_is_same(*pairs[each]) for each in (mean, var)):
            continue
        mine, theirs = (Moments(mean=_wide(pairs[mean][side]), var=_wide(pairs[var][side]), count=1) for side in (0, 1))
        yield norm.name, apart(mine, theirs, eps=norm.eps)


def _is_same(mine: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal in the coarser of their dtypes."""
    if not mine.is_floating_point() or not other.is_floating_point():
        return torch.equal(mine.detach().cpu(), other.detach().cpu().to(mine.dtype))
    coarse = min(mine.dtype, other.dtype, key=lambda each: -torch.finfo(each).eps)
    first, second = (each.detach().cpu().to(coarse) for each in (mine, other))
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)


def _relative(mine: Tensor, other: Tensor) -> float:
    size = (mine.square().sum() + other.square().sum()) / 2
    return float(((mine - other).square().sum() / size).sqrt())


def gather_ranks(model: nn.Module, norms: Sequence[NormState], ranks: Ranks) -> dict[str, RankStatistics]:
    """Return each norm's running statistics on every rank, without those that a rank lacks or has in another shape.

    Args:
        model: this rank's model.
        norms: this rank's norms.
        ranks: a state of every rank, in any saved form; or a process group, whose ranks must all call this.

    Raises:
        ValueError: there are states of fewer than two ranks.
    """
    mine = {norm.name: (norm.mean, norm.var) for norm in norms if norm.mean is not None and norm.var is not None}
    each: list[dict[str, Any]]
    if isinstance(ranks, Sequence):
        each = [dict(_statistics(model, norms, state)) for state in ranks]
    else:
        each = [{} for _ in range(torch.distributed.get_world_size(ranks))]
        torch.distributed.all_gather_object(each, mine, group=ranks)
    if len(each) < 2:
        raise ValueError(
            f"diagnose: ranks must be states of at least two ranks, got {len(each)}. Give one state dict for each."
        )
    whole = [name for name, pair in mine.items() if all(_fits(pair, other.get(name)) for other in each)]
    return {
        name: RankStatistics(
            means=torch.stack([other[name][0] for other in each]), vars=torch.stack([other[name][1] for other in each])
        )
        for name in whole
    }


def _statistics(
    model: nn.Module, norms: Sequence[NormState], state: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    tensors = state_for(model, state, verb="diagnose").tensors
    for norm in norms:
        mean, var = (tensors.get(f"{norm.name}.{each}" if norm.name else each) for each in _STATISTICS)
        if mean is not None and var is not None and why_no_numbers(mean) is None and why_no_numbers(var) is None:
            yield norm.name, (_wide(mean), _wide(var))


def _fits(pair: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor] | None) -> bool:
    return other is not None and all(a.shape == b.shape for a, b in zip(pair, other, strict=True))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
