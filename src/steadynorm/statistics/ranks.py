"""Moments of the ranks of a process group, merged as if one process had seen all values.

One collective each way, of any backend and device. Forward: every rank gathers mean, var and count of all, 2C + 1
numbers each, and merges them around their common mean; a sum over ranks (all-reduce) could carry only Σx and Σx²,
whose difference has lost the variance's digits once |mean| is much larger than std. Backward: one all-reduce of the
gradients of the merged mean and var, on which every rank's result depends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from steadynorm.statistics.moments import Moments, as_tensor, merge

__all__ = [
    "Ranks",
    "check_agreement",
    "gather_over",
    "is_mapped_backward",
    "merge_over",
    "pool_over",
    "ranks_of",
    "sum_over",
]

_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Ranks:
    """The processes that measure together, this one among them.

    Args:
        group: torch's name of the process group.
        rank: place of this process in it.
        size: how many there are, at least 2.
        describe: names the layer in an error message; called only for one.
    """

    group: str
    rank: int
    size: int
    describe: Callable[[], str] | None = None


def ranks_of(process_group: dist.ProcessGroup | None = None, describe: Callable[[], str] | None = None) -> Ranks | None:
    """Give the ranks of a process group, None where this process is alone or torch.distributed is not set up.

    Args:
        process_group: None is the default group.
        describe: see :class:`Ranks`.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    size = dist.get_world_size(process_group)
    if size < 2:  # −1 where this process is none of the group's
        return None
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    return Ranks(group.group_name, dist.get_rank(process_group), size, describe)


def merge_over(ranks: Ranks, batch: Moments) -> Moments:
    """Merge the moments of all ranks, without gradient; see :func:`steadynorm.statistics.moments.merge`.

    Args:
        ranks: every one of them must call this.
        batch: of this rank; where its count is an int of 0, mean and var may be anything.

    Returns:
        the same on every rank, with a tensor of one value as count; mean 0, var 0, count 0 where no rank has a value.
    """
    channels = batch.mean.numel()
    if isinstance(batch.count, Tensor):
        packed = torch.cat((batch.mean, batch.var, batch.count.to(batch.mean.dtype).view(1)))
    elif batch.count == 0:
        packed = batch.mean.new_zeros(2 * channels + 1)
    else:
        packed = torch.cat((batch.mean, batch.var, batch.mean.new_full((1,), batch.count)))
    gathered = gather_over(ranks, packed).view(ranks.size, -1)
    means, variances, counts = gathered[:, :channels], gathered[:, channels:-1], gathered[:, -1:]
    return replace(merge(means, variances, counts), count=counts.sum())


def pool_over(ranks: Ranks, batch: Moments) -> Moments:
    """Merge the moments of all ranks as :func:`merge_over` does, differentiable any number of times.

    Mean and var of an empty batch must be finite, and come from the input, so that its rank takes part in the backward.
    """
    _refuse_forward_mode()
    count = as_tensor(batch.count, batch.mean)
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Pool.apply
    mean, var, total = apply(batch.mean, batch.var, count, ranks)
    return Moments(mean=mean, var=var, count=total)


def sum_over(ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Sum tensors of shape (C,) over the ranks in one all-reduce, differentiable any number of times."""
    return _sum(ranks, torch.stack(tensors)).unbind()


def is_mapped_backward(gradient: Tensor) -> bool:
    """Say whether a gradient is one of many that ``is_grads_batched`` maps over, by a vmap that is not torch.func's."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(gradient)


def _sum(ranks: Ranks, values: Tensor) -> Tensor:
    if is_mapped_backward(values):
        raise NotImplementedError(
            "moments over ranks: is_grads_batched=True and jacobian(vectorize=True) must not be asked of a batch that "
            "is measured over several processes. Use torch.func.vmap of torch.func.vjp, or torch.func.jacrev."
        )
    if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return _all_reduce(ranks, values)
    _refuse_forward_mode()
    apply: Callable[..., Tensor] = _Sum.apply
    return apply(values, ranks)


class _Sum(torch.autograd.Function):
    """What every rank adds to every rank's sum comes back from every rank."""

    @staticmethod
    def forward(values: Tensor, ranks: Ranks) -> Tensor:
        return _all_reduce(ranks, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401 (torch gives no type that has these attributes)
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        return _sum(ctx.ranks, gradient), None

    @staticmethod
    def vmap(_: object, in_dims: tuple[int | None, ...], values: Tensor, ranks: Ranks) -> tuple[Tensor, int | None]:
        """Sum mapped values in one collective: every element is summed by itself."""
        return _sum(ranks, values), in_dims[0]


class _Pool(torch.autograd.Function):
    """The moments of all ranks as a function of this one's.

    d_mean_r = s_r·(D_mean + 2·(mean_r − mean)·D_var)        d_var_r = s_r·D_var,        D summed over the ranks
    """

    @staticmethod
    def forward(mean: Tensor, var: Tensor, count: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        merged = merge_over(ranks, Moments(mean=mean, var=var, count=count))
        assert isinstance(merged.count, Tensor)
        return merged.mean, merged.var, merged.count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401 (as above)
        own_mean, _, own_count, ctx.ranks = inputs
        mean, _, count = output
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(own_mean, own_count, mean, count)

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_var: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        own_mean, own_count, mean, count = ctx.saved_tensors
        d_mean, d_var = sum_over(ctx.ranks, d_mean, d_var)
        share = own_count / count.clamp(min=1)
        return share * (d_mean + 2 * (own_mean - mean) * d_var), share * d_var, None, None

    @staticmethod
    def vmap(*_: object) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int | None, ...]]:
        raise NotImplementedError(
            "moments over ranks: a batch that is measured over several processes cannot be mapped by torch.func.vmap, "
            "got a mapped input. Call .eval(), or let the mapped dimension be part of the batch."
        )


def _refuse_forward_mode() -> None:
    """Raise where forward-mode derivatives are taken; Dynamo traces no function that has a ``jvp`` to raise in."""
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "moments over ranks: forward-mode derivatives (jvp, jacfwd, hessian, dual numbers) of a batch that is "
            "measured over several processes must not be asked for. Use vjp or jacrev, or call .eval()."
        )


def check_agreement(ranks: Ranks, channels: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise RuntimeError on every rank where they do not all measure as many channels in the same dtype.

    A collective of its own, of a fixed size: tensors of different sizes would not fit into one, which hangs or ends the
    process, as the backend has it.

    Args:
        ranks: every one of them must call this.
        channels: C of this rank.
        dtype: of its statistics.
        device: of its tensors.
    """
    own = torch.tensor([channels, _DTYPES.index(dtype)], device=device)
    rows = [(each, _DTYPES[kind]) for each, kind in gather_over(ranks, own).view(-1, 2).tolist()]
    if len(set(rows)) > 1:
        found = ", ".join(f"rank {rank} {each} in {kind}" for rank, (each, kind) in enumerate(rows))
        raise RuntimeError(
            f"{_name(ranks)}: all ranks must normalize as many channels in the same dtype, got {found}. Build the same "
            "model on every rank, and run its layers in the same order."
        )


def gather_over(ranks: Ranks, values: Tensor) -> Tensor:
    """Concatenate the ranks' values, in the order of the ranks; of as many values on each."""
    return _collective(ranks, "all_gather_into_tensor", values, ranks.size, ranks.group)


def _all_reduce(ranks: Ranks, values: Tensor) -> Tensor:
    return _collective(ranks, "all_reduce", values, "sum", ranks.group)


def _collective(ranks: Ranks, name: str, *arguments: Any) -> Tensor:  # noqa: ANN401 (as the operation has them)
    """Run a collective of torch's functional ones, which compilers trace, and wait for it."""
    operation = getattr(torch.ops._c10d_functional, name)
    wait = torch.ops._c10d_functional.wait_tensor
    if torch.compiler.is_compiling():
        traced: Tensor = wait(operation(*arguments))
        return traced
    try:
        result: Tensor = wait(operation(*arguments))
    except RuntimeError as error:
        raise RuntimeError(
            f"{_name(ranks)}: every rank must take part in normalizing a batch, in training forward and backward, but "
            f"rank {ranks.rank} of {ranks.size} got no answer from all others. See whether one of them has stopped, "
            "or runs other layers or fewer batches (an empty one takes part as well), or is so late that the process "
            f"group's timeout must be longer. {name}: {error}"
        ) from error
    return result


def _name(ranks: Ranks) -> str:
    return "moments over ranks" if ranks.describe is None else ranks.describe()
