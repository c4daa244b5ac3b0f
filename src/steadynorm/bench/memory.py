"""Memory of one forward and backward beyond what goes in: at the peak, and kept between the two."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from steadynorm.bench.sides import Inputs

__all__ = ["Saved", "peak_bytes", "saved_bytes"]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What autograd keeps between forward and backward, each storage counted once."""

    new_bytes: int
    """Memory that exists for the backward's sake, the output included where it is kept."""
    given_bytes: int
    """Input, residual, parameters and buffers among what is kept."""


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Give the most memory that torch held at a time while ``work`` ran, above what it held before.

    Exact on both devices; what is allocated behind torch's back is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    held = peak = 0
    for change in _allocations(watched):
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(module: nn.Module, inputs: Inputs) -> Saved:
    """Run a forward and count what it keeps for the backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(*inputs.given)
        tensors = (*inputs.given, *module.parameters(), *module.buffers())
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        del y
    given_bytes = sum(size for place, size in kept.items() if place in given)
    return Saved(new_bytes=sum(kept.values()) - given_bytes, given_bytes=given_bytes)


def _allocations(watched: profile) -> list[int]:
    """Give the size of every allocation, and of every release as a negative number, in order of time."""
    with tempfile.TemporaryDirectory() as place, _quiet_stderr():
        path = Path(place) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send the process's standard error nowhere: torch's profiler announces itself there, whatever Python says."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
