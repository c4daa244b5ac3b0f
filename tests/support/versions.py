"""Where older versions of torch differ."""

from __future__ import annotations

import pytest
import torch

__all__ = ["skip_at", "skip_before"]


def skip_before(version: tuple[int, int], because: str) -> None:
    """Skip the running test under a torch older than (major, minor)."""
    if _running() < version:
        pytest.skip(f"torch {torch.__version__}: {because}")


def skip_at(version: tuple[int, int], because: str) -> None:
    """Skip the running test under exactly torch (major, minor)."""
    if _running() == version:
        pytest.skip(f"torch {torch.__version__}: {because}")


def _running() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])
