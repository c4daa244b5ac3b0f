"""What every test of the core runs under."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.poison import nan_filled_memory

HERE = Path(__file__).parent
ROOT = HERE.parent
# Numba takes code from its cache while the file of a function is as it was, though what it calls lies in another file.
_sources = sorted((ROOT / "src" / "steadynorm" / "ops").glob("_*.py"))
_digest = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / "numba" / _digest))
# A second thread takes more time than it saves of small tensors, and where another process of tests has its core.
THREADS = torch.get_num_threads()
SHARING = ("ops", "rules")
"""What is about kernels that share their work among threads."""
torch.set_num_threads(1)
POISONED = ("statistics", "ops", "rules", "functional", "layers")


@pytest.fixture(autouse=True)
def threads_stay_as_they_were(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that sets torch's threads does not slow those after it."""
    torch.set_num_threads(THREADS if request.path.relative_to(HERE).parts[0] in SHARING else 1)
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def uninitialized_memory_is_nan(request: pytest.FixtureRequest) -> Iterator[None]:
    """An output that a kernel forgot to write cannot pass for a plausible number."""
    if request.path.relative_to(HERE).parts[0] not in POISONED:
        yield
        return
    with nan_filled_memory():
        yield
