"""Detect forwards that torch.utils.checkpoint may run a second time, for the backward.

``is_possible`` is computed whenever it is read. A compiler guards on the value of a module's attribute, and reads it
again each time before it runs a graph. So checkpointing gets its own graph. The forward and its recomputation share it,
because autograd must save the same tensors for both. Without checkpointing the graph contains no extra work.
"""

from __future__ import annotations

import torch

__all__ = ["TELLS_HOOKS", "is_possible", "saves_by_hooks"]

_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_current_backward = torch._C._current_graph_task_id
TELLS_HOOKS = _top_hooks is not None
"""Whether torch exposes the hooks on saved tensors; torch 2.6 does not."""

is_possible: bool
"""Whether a forward that saves tensors may be recomputed or is a recomputation; False if torch hides the hooks."""


def __getattr__(name: str) -> bool:
    if name == "is_possible":
        return TELLS_HOOKS and (_current_backward() != -1 or saves_by_hooks())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def saves_by_hooks() -> bool:
    """Whether hooks, such as those of checkpointing, save tensors for the backward instead of torch itself."""
    return _top_hooks is not None and _top_hooks(False) is not None
