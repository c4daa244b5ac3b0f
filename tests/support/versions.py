"""Where older versions of torch differ."""

from __future__ import annotations

import pytest
import torch

__all__ = ["skip_before"]


def skip_before(version: tuple[int, int], because: str) -> None:
    """Skip the running test under a torch older than (major, minor)."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < version:
        pytest.skip(f"torch {torch.__version__}: {because}")
