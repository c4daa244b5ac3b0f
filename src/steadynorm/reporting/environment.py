"""Describe the environment of a result: processor, cores and memory, and package versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from steadynorm import __version__

__all__ = ["count_cores", "cpuinfo", "describe_machine", "describe_versions"]


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use: those it is bound to, or fewer where its container has a quota.

    Args:
        quota: file of the kernel's (cgroup v2) with two numbers of microseconds: of processor time in each period
            (``max`` where there is no limit), and of the period.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    time, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    return cores if time == "max" else min(cores, max(1, math.ceil(int(time) / int(period))))


def describe_versions(packages: Collection[str] = ("torch", "numpy", "safetensors")) -> dict[str, str]:
    """Return the versions of Python, of this package, and of the installed ones of some packages.

    Args:
        packages: those that decide the numbers.
    """
    found = {"python": platform.python_version(), "steadynorm": __version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and operating system, for the reader of a report."""
    return {
        "processor": _cpu_model(),
        "cores": count_cores(),
        "memory_gib": _memory_gib(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(key: str) -> str:
    """Return a processor's entry in Linux's /proc/cpuinfo; empty if there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
