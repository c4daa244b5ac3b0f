"""Runs a module's tests with the formulas, and with whatever is chosen for small tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steadynorm.ops.dispatch import backend

__all__ = ["as_chosen", "each_backend"]


@pytest.fixture(autouse=True, params=["reference", "auto"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small tensors are torch's own by default: without this, torch would be compared with itself."""
    with backend(request.param):
        yield


as_chosen = pytest.mark.parametrize("each_backend", ["auto"], indirect=True)
"""Of compiled layers, whose graphs hold the same operations whichever backend runs them."""
