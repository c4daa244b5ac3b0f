"""Memory of one forward and backward besides their inputs: at the peak, and kept between the two."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from steadynorm.bench.providers import Inputs
from steadynorm.bench.timing import Provider

__all__ = ["Saved", "peak_bytes", "saved_bytes"]


class Saved(TypedDict):
    """What autograd keeps between forward and backward, each storage counted once."""

    new_bytes: int
    """Memory kept for the backward, including the output if it is kept."""
    given_bytes: int
    """Input, residual, parameters and buffers among what is kept."""


def peak_bytes(provider: Provider, device: torch.device) -> int:
    """Return the peak of torch's memory while a provider ran, above the level before.

    Exact on both devices; memory allocated without torch does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        provider(lambda: None)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        provider(lambda: None)
    held = peak = 0
    for change in _allocations(watched):
        held += change
        peak = max(peak, held)
    return peak


def saved_bytes(module: nn.Module, inputs: Inputs) -> Saved:
    """Run a forward and count the bytes it keeps for the backward."""
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
    given_bytes = sum(size for address, size in kept.items() if address in given)
    return Saved(new_bytes=sum(kept.values()) - given_bytes, given_bytes=given_bytes)


def _allocations(watched: profile) -> list[int]:
    """Return the size of every allocation, and of every release as a negative number, in order of time."""
    with tempfile.TemporaryDirectory() as directory, _quiet_stderr():
        path = Path(directory) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence the process's standard error, to which torch's profiler writes directly."""
    sys.stderr.flush()
    original = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)
