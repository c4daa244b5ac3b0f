"""What every test of the core runs under."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.poison import nan_filled_memory

HERE = Path(__file__).parent
POISONED = ("statistics", "ops", "rules", "layers", "test_functional.py")


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan(request: pytest.FixtureRequest) -> Iterator[None]:
    """An output that a kernel forgot to write cannot pass for a plausible number."""
    if request.path.relative_to(HERE).parts[0] not in POISONED:
        yield
        return
    with nan_filled_memory():
        yield
