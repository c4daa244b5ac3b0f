"""A function on several processes at once, each a rank of a gloo group on this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SIZES", "Collectives", "on_ranks", "part_of", "together"]

SIZES = (5, 1, 0, 3)
"""Samples on each of four ranks."""
_IMPORTED = [
    "steadynorm",
    "numba",
    "torch.distributed",
    "torch._dynamo.backends.debugging",
    "torch._inductor.compile_fx",
]
"""What the ranks, a compiler in them among it, would each take ten seconds to import."""


def on_ranks(function: Callable[[], Any], size: int, folder: Path) -> list[Any]:
    """What the function returns on each rank. It is found there by its name, so it must be one of a module.

    Every rank is a new process, forked from one that has imported what takes long and started no thread.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED)
    mp.start_processes(_run, (size, function, folder), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _run(rank: int, size: int, function: Callable[[], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    torch.save(function(), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def part_of(whole: Tensor, sizes: Sequence[int] = SIZES) -> Tensor:
    """This rank's samples."""
    return whole.split(list(sizes))[dist.get_rank()].clone(memory_format=torch.preserve_format)


def together(parts: Sequence[Tensor]) -> Tensor:
    """The ranks' samples in one tensor."""
    return torch.cat(list(parts))


class Collectives(TorchDispatchMode):
    """Names the collectives that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operation.name()
        if name.split("::")[0] in ("c10d", "_c10d_functional") and "wait" not in name:
            self.seen.append(name.split("::")[1])
        return operation(*arguments, **(named or {}))
