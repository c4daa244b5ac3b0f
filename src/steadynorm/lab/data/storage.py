"""Storage for images: in memory if they fit, else in a mapped file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["fits", "gathered", "memory_limit", "room"]

SHARE = 0.5
"""Share of the free memory that images may take."""
_CHUNK = 1_024


def memory_limit() -> int:
    """Return how many bytes of memory images may take: half of what is free."""
    return int(SHARE * min(_available(), _left_in_group()))


def fits(shape: Sequence[int]) -> bool:
    """Whether bytes of this shape fit into memory."""
    return math.prod(shape) <= memory_limit()


def room(shape: Sequence[int], folder: Path | None = None) -> Tensor:
    """Allocate bytes.

    Args:
        shape: shape of the result.
        folder: folder of the file, if the bytes do not fit into memory; the file has no name and vanishes with the
            result. None is the system's folder for temporary files.

    Returns:
        uint8, uninitialised.
    """
    if fits(shape):
        return torch.empty(tuple(shape), dtype=torch.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="w+", shape=tuple(shape)))


def gathered(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return ``rows[chosen]``, wherever there is room for it."""
    shape = (len(chosen), *rows.shape[1:])
    if fits(shape):
        return rows[chosen]
    made = room(shape)
    for start in range(0, len(chosen), _CHUNK):
        some = chosen[start : start + _CHUNK]
        made[start : start + len(some)] = rows[some]
    return made


def _available() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # not Linux
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _left_in_group() -> float:
    """Return the memory that a container's control group leaves; infinite without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        return float((folder / "memory.max").read_text()) - float((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf
