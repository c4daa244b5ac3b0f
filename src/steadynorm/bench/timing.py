"""Timing: providers interleaved in rounds, medians with 20th and 80th percentile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

__all__ = [
    "Clock",
    "Mark",
    "Provider",
    "Quantiles",
    "Sample",
    "cache_bytes",
    "make_clock",
    "make_step_clock",
    "quantiles",
    "time_providers",
    "total_ms",
]

LEAST_ROUNDS = 7
WARM_UP = 3
CPUS = Path("/sys/devices/system/cpu")
USUAL_CACHE = 64 << 20  # if the system does not tell
CALLS_PER_SAMPLE = 10  # on a GPU, where a single call is too short to wait for
CYCLES_PER_SECOND = 2e9  # of a GPU, rather too many: the queue must not run dry

Mark = Callable[[], None]
"""Called at the beginning and the end of a timed part."""

Provider = Callable[[Mark], None]
"""A compared function: does its work once, with a mark at the start of each timed part and at the end."""


class Quantiles(TypedDict):
    """Milliseconds, as a record holds them."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed call."""

    parts_ms: tuple[float, ...]
    """From mark to mark."""
    host_ms: float
    """Time that the calling thread spent; on a CPU all of it."""

    @property
    def total_ms(self) -> float:
        """From the first mark to the last."""
        return sum(self.parts_ms)


Clock = Callable[[Provider], list[Sample]]
"""Clock of a device: runs a provider once or several times, timed from mark to mark."""


def make_clock(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return _CudaClock() if device.type == "cuda" else _cpu_clock


def make_step_clock(device: torch.device) -> Clock:
    """Return the clock for whole steps: Python's time counts on every device."""
    return _cuda_wall_clock if device.type == "cuda" else _cpu_clock


def _cpu_clock(provider: Provider) -> list[Sample]:
    """Time a single call."""
    marks: list[int] = []
    provider(lambda: marks.append(time.perf_counter_ns()))
    parts = tuple((end - start) / 1e6 for start, end in pairwise(marks))
    return [Sample(parts_ms=parts, host_ms=sum(parts))]


def _cuda_wall_clock(provider: Provider) -> list[Sample]:
    """Time several calls in a row, waited for at the end only, as a training loop does."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS_PER_SAMPLE):
        provider(lambda: None)
    queued = time.perf_counter()
    torch.cuda.synchronize()
    ms = (time.perf_counter() - start) * 1e3 / CALLS_PER_SAMPLE
    return [Sample(parts_ms=(ms,), host_ms=(queued - start) * 1e3 / CALLS_PER_SAMPLE)]


class _CudaClock:
    """Time on the device, between events.

    The device first spins until the calls are queued behind it, so that it never waits for Python in between; how
    long Python took is returned as well.
    """

    def __init__(self) -> None:
        self.queueing = 0.02

    def __call__(self, provider: Provider) -> list[Sample]:
        torch.cuda.synchronize()
        torch.cuda._sleep(int(1.5 * self.queueing * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
        events: list[list[torch.cuda.Event]] = [[] for _ in range(CALLS_PER_SAMPLE)]
        start = time.perf_counter()
        for marks in events:
            provider(lambda marks=marks: _record(marks))  # type: ignore[misc]
        self.queueing = time.perf_counter() - start
        torch.cuda.synchronize()
        host_ms = self.queueing * 1e3 / len(events)
        parts = [tuple(start.elapsed_time(end) for start, end in pairwise(marks)) for marks in events]
        return [Sample(parts_ms=each, host_ms=host_ms) for each in parts]


def _record(marks: list[torch.cuda.Event]) -> None:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    marks.append(event)


def time_providers(
    providers: Mapping[str, Provider],
    clock: Clock,
    *,
    seconds: float,
    least_rounds: int = LEAST_ROUNDS,
    decide: Callable[[bool], bool] = bool,
) -> dict[str, list[Sample]]:
    """Warm up all providers, then time each once per round; every round starts one provider later.

    Load and temperature of the machine then affect all providers equally.

    Args:
        providers: providers by name.
        clock: clock of their device.
        seconds: time after which no further round starts.
        least_rounds: least number of rounds.
        decide: receives whether this process would start another round, returns whether all do.
    """
    for _ in range(WARM_UP):
        for provider in providers.values():
            provider(lambda: None)
    samples: dict[str, list[Sample]] = {name: [] for name in providers}
    names, rounds, start = list(providers), 0, time.perf_counter()
    while names and (rounds < least_rounds or decide(time.perf_counter() - start < seconds)):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            samples[name] += clock(providers[name])
        rounds += 1
    return samples


def total_ms(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Quantiles]:
    """Return each provider's milliseconds from the first mark to the last."""
    return {name: quantiles([sample.total_ms for sample in taken]) for name, taken in samples.items()}


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return the median with the 20th and 80th percentile."""
    low, middle, high = np.percentile(values, (20, 50, 80)).tolist()
    return Quantiles(median=middle, p20=low, p80=high)


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last-level cache.

    Inputs rotate among enough sets that x alone fills it, and dy again: in training they are cold as well.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    found: dict[tuple[int, str], int] = {}
    for index in CPUS.glob("cpu[0-9]*/cache/index*"):
        level, size, shared = ((index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
        found[int(level), shared] = int(size.removesuffix("K")) << 10
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or USUAL_CACHE
