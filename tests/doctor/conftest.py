"""One trained network for all tests of the doctor."""

import copy
from typing import Any

import pytest
from torch import nn

from tests.support.doctor import trained_network


@pytest.fixture(scope="session")
def healthy() -> nn.Sequential:
    """Never changed."""
    return trained_network()


@pytest.fixture
def model(healthy: nn.Sequential) -> Any:
    """A copy for one test."""
    return copy.deepcopy(healthy)
