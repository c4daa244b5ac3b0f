"""The workers that torchrun starts: which of them this process is, and how they stay of one mind.

A process that torchrun did not start is the only worker, and everything here is a plain call for it. The first worker
reads and writes the files; all train, on their parts of each batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from steadynorm.lab.several_decays import SeveralDecays
from steadynorm.reporting.failure import UserError
from steadynorm.statistics.moments import mixture
from steadynorm.surgery import reconcile_statistics_

__all__ = [
    "average_gradients_",
    "check_alike",
    "gathered",
    "is_first",
    "joined",
    "may_restart",
    "mean_over_workers",
    "number_of_workers",
    "on_first",
    "run_on_all_ranks",
    "sum_over_workers",
    "sync_buffers_",
    "was_restarted",
    "worker",
]

T = TypeVar("T")

LOST = "gloo/transport/"
"""In the message of gloo's RuntimeError where a connection ends."""
PATIENCE = timedelta(hours=12)
"""How long workers wait for each other: as long as the longest cell may take. torchrun itself sees one that dies."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other workers where torchrun started this process, and leave them at the end.

    Raises:
        UserError: the machine has fewer GPUs than workers, or another worker has died.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    try:
        _meet()
        run_on_all_ranks(_choose_gpu)
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or LOST in str(error):
            raise UserError("another worker has stopped, so this one stops as well.") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet() -> None:
    """Set up the process group.

    torchrun's default rendezvous keeps its store when it starts the workers again, with the addresses of those that
    died in it; so each attempt has a part of the store of its own.
    """
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=PATIENCE)


def _choose_gpu() -> None:
    """Take the GPU of this worker's place on its machine, where there are GPUs."""
    if not torch.cuda.is_available():
        return
    place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if place >= gpus:
        workers = os.environ["LOCAL_WORLD_SIZE"]
        raise UserError(f"{workers} workers on a machine with {gpus} GPUs. Give torchrun --nproc-per-node {gpus}.")
    torch.cuda.set_device(place)


def worker() -> int:
    """Return the number of this worker, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def number_of_workers() -> int:
    """Count the workers that have joined; 1 where this process is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this worker is the one that reads, writes and shows."""
    return worker() == 0


def may_restart() -> bool:
    """Whether torchrun would start all workers again after one has died."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def was_restarted() -> bool:
    """Whether torchrun has started the workers before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def on_first(action: Callable[[], T]) -> T:
    """Do it on the first worker alone and give all of them what came of it, a failure included.

    Raises:
        UserError: on all workers, where the action did; OSError likewise.
    """
    if number_of_workers() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = action()
        except (UserError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast("T", outcome[0])


def run_on_all_ranks(action: Callable[[], T]) -> T:
    """Do it on every worker; where it fails on one, it fails on all of them.

    Raises:
        UserError: with the number of the worker where there are several; OSError likewise.
    """
    if number_of_workers() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except (UserError, OSError) as caught:
        error = caught
    errors = gathered(error)
    if set(map(str, errors)) == {str(errors[0])} and errors[0] is not None:
        raise errors[0]
    for number, one in enumerate(errors):
        if one is not None:
            raise UserError(f"worker {number}: {one}") from one
    return cast("T", result)


def gathered(value: T) -> list[T]:
    """Return every worker's value, in their order."""
    if number_of_workers() == 1:
        return [value]
    values: list[Any] = [None] * number_of_workers()
    dist.all_gather_object(values, value)
    return values


def check_alike(values: Mapping[str, object], *, what: str) -> None:
    """Refuse workers that were told different things.

    Args:
        values: of this worker, by name.
        what: to do about a difference.

    Raises:
        UserError: on all workers.
    """
    ours = gathered({name: str(value) for name, value in values.items()})
    for name, value in ours[0].items():
        for number, other in enumerate(ours):
            if other.get(name) != value:
                raise UserError(
                    f"{name}: must be the same on every worker, got {value} on worker 0 and {other.get(name)} on "
                    f"worker {number}. {what}"
                )


def sum_over_workers(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sum tensors over the workers, in float64 and in one collective."""
    if number_of_workers() == 1:
        return tensors
    packed = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    dist.all_reduce(packed)
    parts = torch.split(packed, [tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True))


def mean_over_workers(tensor: Tensor) -> Tensor:
    """Average a tensor over the workers."""
    (total,) = sum_over_workers(tensor)
    return total / number_of_workers()


def average_gradients_(model: nn.Module) -> None:
    """Return all workers the mean of their gradients, in one collective.

    Not DistributedDataParallel, which from its second step on packs gradients in another order than in its first and so
    sums them in another order: a run that goes on with a later step as its first would end with other last digits.
    """
    if number_of_workers() == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    packed = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(packed)
    packed /= number_of_workers()
    parts = torch.split(packed, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def sync_buffers_(model: nn.Module) -> None:
    """Return all workers the running statistics of all of them together, and what else is no parameter from the first.

    Statistics are merged by :func:`steadynorm.surgery.reconcile_statistics_`. What synchronised layers keep is the
    same already; what follows each worker's part by itself, such as the gate's noise, comes from the first worker.
    """
    if number_of_workers() == 1:
        return
    reconcile_statistics_(model)
    for module in model.modules():
        if isinstance(module, SeveralDecays):
            means, variances = (_of_all_workers(each).double() for each in (module.means, module.vars))
            mean, var = mixture(means, variances, means.new_tensor(1 / number_of_workers()))
            module.means.copy_(mean)
            module.vars.copy_(var)
    for tensor in model.buffers():
        dist.broadcast(tensor, src=0)


def _of_all_workers(tensor: Tensor) -> Tensor:
    """Stack a tensor's values on the workers, in their order."""
    parts = [torch.empty_like(tensor) for _ in range(number_of_workers())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)
