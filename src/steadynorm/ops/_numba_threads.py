"""Running the compiled kernels on threads, within what Numba's threading layers can do.

Numba takes the first that it finds: Intel's TBB, GNU OpenMP, or its own work queue. The first two serve several threads
at once; the work queue ends the process, so that calls wait for each other there. A forked child has none of its
parent's threads: GNU OpenMP ends or blocks one that calls for them.
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
"""Parts of the work for every thread: a late thread then delays less."""
MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS
_PROCESS = os.getpid()


def is_forked() -> bool:
    """Whether this process was forked from one that had loaded the kernels."""
    return os.getpid() != _PROCESS


def start() -> None:
    """Let Numba do what it otherwise does at the first call: read what it knows, and start its threads."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    _turn()


def run(kernel: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 (the kernel's own)
    """Run a kernel on as many threads as torch uses; numba's own setting comes back.

    Raises:
        RuntimeError: the process was forked from one that had loaded the kernels.
    """
    if is_forked():
        raise RuntimeError(
            "steadynorm.ops: the compiled kernels must run in the process that loaded them, got one forked from it, "
            "where their threads do not exist. Run forward and backward both in the child, or start it by spawn."
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
    """Start Numba's threads; give what a call holds while it uses them: a lock where only one may."""
    before = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != before:  # both are counts of OpenMP, which NUMBA_NUM_THREADS has just overwritten
        torch.set_num_threads(before)
    return threading.Lock() if numba.threading_layer() == "workqueue" else nullcontext()
