"""Whether a forward may be one of two for its batch: torch.utils.checkpoint runs it again for the backward.

``is_possible`` is computed whenever it is read. A compiler guards on the value of a module's attribute, and reads it
again each time before it runs a graph. So checkpointing gets a graph of its own, the same one for a forward and its
recomputation, for which autograd must save the same; and where there is none, a graph holds nothing for it.
"""

from __future__ import annotations

import torch

__all__ = ["TELLS_HOOKS", "is_possible", "saves_by_hooks"]

_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_current_backward = torch._C._current_graph_task_id
TELLS_HOOKS = _top_hooks is not None
"""Whether torch tells the hooks on saved tensors: not so in 2.6."""

is_possible: bool
"""Whether a forward that keeps something for its backward may be recomputed, or is; False where torch cannot tell."""


def __getattr__(name: str) -> bool:
    if name == "is_possible":
        return TELLS_HOOKS and (_current_backward() != -1 or saves_by_hooks())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def saves_by_hooks() -> bool:
    """Whether hooks save for the backward, as those of checkpointing do, and not torch itself."""
    return _top_hooks is not None and _top_hooks(False) is not None
