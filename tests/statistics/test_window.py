import math

import pytest
import torch

from steadynorm.statistics import Moments, as_row, measure, pool
from tests.support.layers import drawn


def rows(*batches: torch.Tensor) -> torch.Tensor:
    return torch.stack([as_row(measure(batch)) for batch in batches])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_pool_has_the_moments_of_all_values_together(offset):
    batches = [drawn(size, 3, 4, seed=size) + offset + size for size in (2, 7, 1)]
    pooled, filled = pool(rows(*batches))
    expected = measure(torch.cat(batches))
    torch.testing.assert_close(pooled.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(pooled.var, expected.var, rtol=1e-9, atol=0)
    assert pooled.count.tolist() == [40.0] * 3
    assert filled.tolist() == [True] * 3


def test_batches_without_values_count_for_nothing():
    batch, nothing = drawn(4, 3), torch.empty(0, 3, dtype=torch.float64)
    pooled, filled = pool(rows(batch, nothing))
    torch.testing.assert_close(pooled.mean, batch.mean(0))
    assert filled.tolist() == [True, False]


def test_a_pool_of_nothing_is_zero():
    pooled, filled = pool(torch.zeros(2, 3, 5))
    assert not filled.any()
    assert pooled.mean.tolist() == pooled.var.tolist() == pooled.count.tolist() == [0.0] * 5


def test_the_row_of_a_batch_without_values_is_zero():
    nothing = torch.full((3,), math.nan)
    assert torch.equal(as_row(Moments(mean=nothing, var=nothing, count=0)), torch.zeros(3, 3))
