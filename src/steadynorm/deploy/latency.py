"""Time requests to several servers in turn, so that drift of the machine affects all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from steadynorm.deploy.processes import Server
from steadynorm.deploy.results import Artifact, Latency

__all__ = ["measure"]

ROUNDS = 10
"""Number of turns that the requests are spread over."""
WARM_UP = 10
"""Warm-up requests before each turn, to bring caches, threads and clocks to their state under load."""
LARGE = 3
"""Turns, and requests of each, for batches of more than one image."""


def measure(
    artifacts: Sequence[Artifact],
    servers: Mapping[str, Server],
    *,
    images: Path,
    requests: int,
    batch_sizes: Sequence[int],
) -> list[Artifact]:
    """Time every served artifact.

    Args:
        artifacts: in any order; those without a server stay unchanged.
        servers: name of an artifact -> its server.
        images: inputs of the requests, float32 array of shape (N, 3, H, W).
        requests: number of requests of one image.
        batch_sizes: images in a request, for the throughput.
    """
    peak: dict[str, float | None] = {}

    def turn(name: str, batch: int, count: int) -> list[float]:
        warm_up = WARM_UP if batch == 1 else 1
        answer = servers[name].ask("time", images=str(images), batch=batch, requests=count, warm_up=warm_up)
        if batch == 1:
            peak[name] = answer["peak_mib"]
        return [float(each) for each in answer["ms"]]

    single = _in_turns(servers, 1, [len(part) for part in np.array_split(range(requests), ROUNDS) if len(part)], turn)
    speeds: dict[str, dict[str, float]] = {name: {} for name in servers}
    for batch in batch_sizes:
        times = single if batch == 1 else _in_turns(servers, batch, [LARGE] * LARGE, turn)
        for name, each in times.items():
            speeds[name][str(batch)] = 1e3 * batch / statistics.median(each)
    return [
        replace(
            one,
            latency=_latency(single[one.name]),
            images_per_second=speeds[one.name],
            peak_mib=peak[one.name],
            load_ms=servers[one.name].load_ms,
        )
        if one.name in servers
        else one
        for one in artifacts
    ]


def _in_turns(
    servers: Mapping[str, Server],
    batch: int,
    counts: Sequence[int],
    turn: Callable[[str, int, int], list[float]],
) -> dict[str, list[float]]:
    """Send requests to all servers in turn; each round starts at the next one."""
    times: dict[str, list[float]] = {name: [] for name in servers}
    names = list(servers)
    for round_, count in enumerate(counts):
        start = round_ % len(names)
        for name in names[start:] + names[:start]:
            times[name] += turn(name, batch, count)
    return times


def _latency(ms: Sequence[float]) -> Latency:
    p50, p90, p95, p99 = np.percentile(ms, (50, 90, 95, 99)).tolist()
    return Latency(requests=len(ms), p50=p50, p90=p90, p95=p95, p99=p99)
