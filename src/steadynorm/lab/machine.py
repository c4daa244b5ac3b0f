"""Resources of a process: reused memory, device, precision, threads."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch

from steadynorm.reporting.environment import count_cores, cpuinfo
from steadynorm.reporting.failure import UserError

__all__ = ["choose_device", "choose_precision", "choose_threads", "reuse_memory"]

Precision = Literal["fp32", "bf16"]

# Parameters of glibc's mallopt(3) and what they are set to, in bytes.
MALLOPT = {
    -3: 1 << 30,  # M_MMAP_THRESHOLD: smaller blocks come from the heap, whose pages stay mapped
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap's end is not given back
    -2: 64 << 20,  # M_TOP_PAD: the heap grows in steps of this size
}


def reuse_memory() -> bool:
    """Let large tensors reuse memory instead of being mapped, faulted in and unmapped at every step.

    For programs only: it changes the allocator of the whole process, which then keeps its peak memory.

    Returns:
        whether the platform's C library accepted all settings; only glibc has them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # Windows does not accept None
        return False
    taken = [mallopt(parameter, value) == 1 for parameter, value in MALLOPT.items()]
    return all(taken)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return cuda for ``auto`` if there is a GPU, else cpu.

    Raises:
        UserError: cuda was requested and is not available.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "--device: cuda must be available, torch finds none. Use --device cpu, or a CUDA build of torch."
        )
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Return bf16 for ``auto`` if the hardware multiplies bfloat16 matrices, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = set(cpuinfo("flags").split())
    return "bf16" if flags & {"amx_bf16", "avx512_bf16"} else "fp32"


def choose_threads(wanted: int | None) -> int:
    """Return the number of threads; default: that of torch, and at most the number of cores.

    torch does not know the quota of a container.

    Raises:
        UserError: more threads than cores were requested; very many would end the process.
    """
    cores = count_cores()
    if wanted is not None and wanted > cores:
        raise UserError(f"--threads: must be at most the {cores} cores that this process may use, got {wanted}.")
    return min(torch.get_num_threads(), cores) if wanted is None else wanted
