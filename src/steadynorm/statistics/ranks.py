"""Moments over the ranks of a process group, as if one process had all values.

One collective in the forward and one in the backward, on any backend and device. Forward: each rank gathers the mean,
var and count of all ranks, 2C + 1 numbers from each, and merges them around their common mean. An all-reduce could
only sum Σx and Σx², whose difference loses the digits of the variance if |mean| is much larger than std. Backward: one
all-reduce of the gradients of the merged mean and var.
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
    """Processes that measure a batch together, including this one.

    Args:
        group: torch's name of the process group.
        rank: rank of this process in it.
        size: number of processes, at least 2.
        describe: names the layer in an error message; called only for an error.
    """

    group: str
    rank: int
    size: int
    describe: Callable[[], str] | None = None


def ranks_of(process_group: dist.ProcessGroup | None = None, describe: Callable[[], str] | None = None) -> Ranks | None:
    """Return the ranks of a process group; None for a single process, or before ``init_process_group``.

    Args:
        process_group: None is the default group.
        describe: see :class:`Ranks`.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    size = dist.get_world_size(process_group)
    if size < 2:  # −1 if this process is not in the group
        return None
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    return Ranks(group.group_name, dist.get_rank(process_group), size, describe)


def merge_over(ranks: Ranks, batch: Moments) -> Moments:
    """Merge the moments of all ranks, without gradient; see :func:`steadynorm.statistics.moments.merge`.

    Args:
        ranks: each of them must call this.
        batch: of this rank; if its count is the int 0, mean and var may be anything.

    Returns:
        the same on every rank, with a tensor of one value as count; mean 0, var 0, count 0 if no rank has values.
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

    Mean and var of an empty batch must be finite and depend on the input, so that its rank takes part in the backward.
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
    """Return whether a gradient is mapped by ``is_grads_batched``, which does not use torch.func.vmap."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(gradient)


def _sum(ranks: Ranks, values: Tensor) -> Tensor:
    if is_mapped_backward(values):
        raise NotImplementedError(
            "moments over ranks: is_grads_batched=True and jacobian(vectorize=True) are not supported for a batch "
            "that is measured over several processes. Use torch.func.vmap of torch.func.vjp, or torch.func.jacrev."
        )
    if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return _all_reduce(ranks, values)
    _refuse_forward_mode()
    apply: Callable[..., Tensor] = _Sum.apply
    return apply(values, ranks)


class _Sum(torch.autograd.Function):
    """Sum over the ranks; the gradient is the sum of all ranks' gradients."""

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
        """Sum mapped values in one collective; elements are summed independently."""
        return _sum(ranks, values), in_dims[0]


class _Pool(torch.autograd.Function):
    """Merged moments as a function of this rank's moments.

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
    """Raise under forward-mode differentiation; Dynamo cannot trace a function with its own ``jvp``."""
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "moments over ranks: forward-mode derivatives (jvp, jacfwd, hessian, dual numbers) are not supported for "
            "a batch that is measured over several processes. Use vjp or jacrev, or call .eval()."
        )


def check_agreement(ranks: Ranks, channels: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise RuntimeError on every rank unless all have the same number of channels and dtype.

    This is a separate collective of fixed size: tensors of different sizes in one collective hang or end the process.

    Args:
        ranks: each of them must call this.
        channels: C of this rank.
        dtype: dtype of its statistics.
        device: device of its tensors.
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
    """Concatenate the values of the ranks, in rank order; every rank passes the same number of values."""
    return _collective(ranks, "all_gather_into_tensor", values, ranks.size, ranks.group)


def _all_reduce(ranks: Ranks, values: Tensor) -> Tensor:
    return _collective(ranks, "all_reduce", values, "sum", ranks.group)


def _collective(ranks: Ranks, name: str, *arguments: Any) -> Tensor:  # noqa: ANN401 (as the operation has them)
    """Run one of torch's functional collectives, which compilers can trace, and wait for it."""
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
