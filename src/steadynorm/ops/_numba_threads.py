"""Run the compiled kernels on threads, within the limits of Numba's threading layers.

Numba uses the first layer that it finds: Intel's TBB, GNU OpenMP, or its own work queue. The first two accept calls
from several threads at once. The work queue would end the process, so calls take turns there. A forked child has none
of its parent's threads: GNU OpenMP ends or blocks a child that uses them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numba
import torch
from numba.core.registry import cpu_target

__all__ = ["is_forked", "run", "start"]

PARTS = 4
"""Parts of the work per thread: several, so that a slow thread delays the others less."""
MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS
_PROCESS = os.getpid()


def is_forked() -> bool:
    """Whether this process was forked from one that had loaded the kernels."""
    return os.getpid() != _PROCESS


def start() -> None:
    """Load Numba's registries and start its threads, which it otherwise does at the first call."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    _turn()


def run(kernel: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 (the kernel's own)
    """Run a kernel on as many threads as torch uses, and restore Numba's own setting.

    Raises:
        RuntimeError: the process was forked from one that had loaded the kernels.
    """
    if is_forked():
        raise RuntimeError(
            "steadynorm.ops: the compiled kernels must run in the process that loaded them, got one forked from it, "
            "where their threads do not exist. Run forward and backward both in the child, or start it with spawn."
        )
    with _turn():
        before, wanted = numba.get_num_threads(), min(torch.get_num_threads(), MOST_THREADS)
        if wanted == before:
            kernel(*arguments, PARTS * wanted)
            return
        numba.set_num_threads(wanted)
        try:
            kernel(*arguments, PARTS * wanted)
        finally:
            numba.set_num_threads(before)


@cache
def _turn() -> AbstractContextManager[object]:
    """Start Numba's threads; return the context of a call that uses them: a lock if calls must take turns."""
    before = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != before:  # both set OpenMP's thread count, which Numba has just overwritten
        torch.set_num_threads(before)
    return threading.Lock() if numba.threading_layer() == "workqueue" else nullcontext()
