"""Memory that shows when it was never written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["nan_filled_memory"]


@contextlib.contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Let ``torch.empty`` and its kin give memory full of NaN (integers: full of their largest value).

    torch does so in its deterministic mode, unless ``torch.utils.deterministic.fill_uninitialized_memory`` is
    switched off.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
