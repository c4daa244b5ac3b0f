import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadynorm.statistics import Moments, measure
from steadynorm.statistics.moments import join, per_channel, statistics_dtype
from tests.support import oracle
from tests.support.cases import each_case, each_faulty_case, make_inputs

counts = st.integers(min_value=0, max_value=9)


def drawn(count: int, *, seed: int, channels: int = 3) -> torch.Tensor:
    """``count`` values per channel, of another mean and spread for each seed; shape (count, C)."""
    values = np.random.default_rng(seed).normal(size=(count, channels))
    return torch.from_numpy(values * (seed + 1) + 10 * seed)


def assert_moments(actual: Moments, expected: Moments) -> None:
    torch.testing.assert_close(actual.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual.var, expected.var, rtol=1e-12, atol=1e-12)
    assert actual.count == expected.count


@each_case
def test_measured_moments_are_as_accurate_as_torchs(case):
    x = make_inputs(case).x
    expected, measured = oracle.batch_norm(x), measure(x)
    wide = statistics_dtype(x.dtype)
    mean, var_unbiased = (torch.zeros(x.shape[1], dtype=wide) for _ in range(2))
    torch.nn.functional.batch_norm(x, mean, var_unbiased, training=True, momentum=1.0)
    count = x.numel() // x.shape[1]
    var = var_unbiased * ((count - 1) / count)
    oracle.assert_as_accurate_as(native=mean, ours=measured.mean, oracle=expected.mean, what="mean")
    oracle.assert_as_accurate_as(native=var, ours=measured.var, oracle=expected.var, what="var")


def test_moments_of_known_values():
    measured = measure(torch.tensor([[1.0, -2.0], [5.0, -2.0]]))
    assert measured.mean.tolist() == [3.0, -2.0]
    assert measured.var.tolist() == [4.0, 0.0]


def test_count_is_values_per_channel():
    assert measure(torch.zeros(2, 3, 5, 7)).count == 70


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_moments_are_float32_at_least(dtype, expected):
    measured = measure(torch.zeros(4, 2, dtype=dtype))
    assert (measured.mean.dtype, measured.var.dtype) == (expected, expected)


def test_variance_keeps_its_digits_at_mean_1e4_std_1_in_float32():
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)) + 1e4
    expected = oracle.batch_norm(x).var
    one_pass = x.square().mean(0) - x.mean(0).square()
    assert abs(one_pass.numpy() / expected - 1).max() > 0.1, "the input is too easy"
    np.testing.assert_allclose(measure(x).var.numpy(), expected, rtol=1e-5)


def test_variance_of_half_precision_values_above_256_does_not_overflow():
    x = torch.tensor([[-60000.0], [60000.0]], dtype=torch.float16)
    assert measure(x).var.item() == float(x[1].item()) ** 2


def test_an_empty_batch_has_no_moments():
    measured = measure(torch.zeros(0, 3, 4))
    assert measured.count == 0
    assert measured.mean.isnan().all()
    assert measured.var.isnan().all()


def test_no_channels_have_no_moments():
    measured = measure(torch.zeros(4, 0, 2))
    assert (measured.mean.shape, measured.count) == ((0,), 0)


@each_faulty_case
def test_a_value_that_is_no_number_corrupts_its_own_channel_only(case):
    x = make_inputs(case).x
    measured = measure(x)
    assert measured.var.isfinite().tolist() == [True, False, True]
    assert measured.mean.isfinite().tolist() == [True, False, True]


@each_case
def test_measuring_changes_nothing(case):
    x = make_inputs(case).x
    before = x.clone()
    measure(x)
    assert torch.equal(x, before)


def test_unbiased_variance_is_numpys_with_one_degree_of_freedom():
    x = drawn(7, seed=2)
    np.testing.assert_allclose(measure(x).var_unbiased.numpy(), np.var(x.numpy(), axis=0, ddof=1), rtol=1e-13)


def test_unbiased_variance_with_a_count_per_channel():
    moments = Moments(mean=torch.zeros(2), var=torch.ones(2), count=torch.tensor([2, 5]))
    assert moments.var_unbiased.tolist() == [2.0, 1.25]


@pytest.mark.parametrize("var", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, torch.tensor([1])])
def test_one_value_has_no_unbiased_variance(count, var):
    moments = Moments(mean=torch.zeros(1), var=torch.full((1,), var), count=count)
    assert not moments.var_unbiased.isfinite().any()


@given(counts, counts, st.booleans())
@settings(deadline=None, max_examples=50)
def test_merging_is_measuring_all_values(count_a, count_b, tensor_counts):
    a, b = drawn(count_a, seed=1), drawn(count_b, seed=4)
    parts = [measure(a), measure(b)]
    if tensor_counts:
        parts = [Moments(mean=p.mean, var=p.var, count=torch.full((3,), p.count)) for p in parts]
    merged = parts[0].merge(parts[1])
    expected = measure(torch.cat([a, b]))
    if count_a + count_b == 0:
        expected = Moments(mean=torch.zeros(3).double(), var=torch.zeros(3).double(), count=0)
    torch.testing.assert_close(merged.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.var, expected.var, rtol=1e-12, atol=1e-12)
    assert torch.as_tensor(merged.count).eq(count_a + count_b).all()


def test_merging_counts_that_differ_between_channels():
    a, b = drawn(6, seed=1), drawn(5, seed=4)
    some = Moments(mean=measure(a).mean, var=measure(a).var, count=torch.tensor([6, 6, 0]))
    merged = some.merge(measure(b))
    both = measure(torch.cat([a, b]))
    torch.testing.assert_close(merged.mean[:2], both.mean[:2])
    torch.testing.assert_close(merged.var[:2], both.var[:2])
    assert merged.mean[2] == measure(b).mean[2]
    assert merged.var[2] == measure(b).var[2]
    assert merged.count.tolist() == [11, 11, 5]


@given(counts, counts, counts)
@settings(deadline=None, max_examples=50)
def test_merging_is_associative(count_a, count_b, count_c):
    a, b, c = (measure(drawn(count, seed=seed)) for seed, count in enumerate((count_a, count_b, count_c)))
    assert_moments(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_merging_keeps_the_digits_of_far_means_in_float32():
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1)) + 1e4
    merged = measure(x[:3]).merge(measure(x[3:]))
    np.testing.assert_allclose(merged.var.numpy(), oracle.batch_norm(x).var, rtol=1e-4)


def test_merging_passes_nan_on():
    broken = Moments(mean=torch.tensor([math.nan]), var=torch.tensor([math.nan]), count=3)
    merged = measure(torch.ones(4, 1)).merge(broken)
    assert merged.mean.isnan().all()
    assert merged.var.isnan().all()


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_a_blend_has_the_moments_of_the_weighted_mixture(weight):
    a, b = drawn(12, seed=1), drawn(4, seed=3)
    mass = torch.tensor([(1 - weight) / 12] * 12 + [weight / 4] * 4, dtype=torch.float64)[:, None]
    values = torch.cat([a, b])
    mean = (mass * values).sum(0)
    var = (mass * (values - mean).square()).sum(0)
    blended = measure(a).blend(measure(b), weight=weight)
    torch.testing.assert_close(blended.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(blended.var, var, rtol=1e-12, atol=1e-12)
    assert blended.count == (1 - weight) * 12 + weight * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_blend_of_weight_zero_or_one_is_one_of_the_two_exactly(dtype, as_tensor):
    a, b = measure(drawn(12, seed=1).to(dtype)), measure(drawn(4, seed=3).to(dtype))
    for weight, expected in ((0.0, a), (1.0, b)):
        blended = a.blend(b, weight=torch.tensor(weight, dtype=dtype) if as_tensor else weight)
        assert torch.equal(blended.mean, expected.mean)
        assert torch.equal(blended.var, expected.var)
        assert blended.count == expected.count


def test_a_blend_takes_a_weight_per_channel():
    a = Moments(mean=torch.zeros(2), var=torch.ones(2), count=4)
    b = Moments(mean=torch.full((2,), 2.0), var=torch.full((2,), 3.0), count=4)
    blended = a.blend(b, weight=torch.tensor([0.0, 0.5]))
    assert blended.mean.tolist() == [0.0, 1.0]
    assert blended.var.tolist() == [1.0, 3.0]


def test_merging_and_blending_change_nothing():
    a, b = measure(drawn(5, seed=1)), measure(drawn(3, seed=2))
    before = [tensor.clone() for tensor in (a.mean, a.var, b.mean, b.var)]
    a.merge(b)
    a.blend(b, weight=0.3)
    assert all(map(torch.equal, before, (a.mean, a.var, b.mean, b.var)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (4, 3, 2, 2, 2)])
def test_per_channel_values_broadcast_along_dimension_one(shape):
    spread = per_channel(torch.arange(3.0), torch.zeros(shape)).expand(shape)
    assert torch.equal(spread.select(1, 2), torch.full_like(spread.select(1, 2), 2.0))


@pytest.mark.parametrize("size", [1e16, 1e18, 1e19], ids=str)
def test_a_variance_that_fits_its_dtype_is_finite_though_its_sum_is_not(size):
    x = torch.randn(4096, 2, 8, generator=torch.Generator().manual_seed(0)) * size
    assert (x - x.mean()).square().sum().isinf() or size == 1e16
    exact = x.double()
    measured = measure(x)
    torch.testing.assert_close(measured.mean.double(), exact.mean((0, 2)), rtol=1e-6, atol=size * 1e-6)
    torch.testing.assert_close(measured.var.double(), exact.var((0, 2), correction=0), rtol=1e-5, atol=0)


def test_the_units_of_the_sums_cost_no_digit():
    x = torch.randn(64, 3, 7, generator=torch.Generator().manual_seed(0)) + 3
    here, there = measure(x), measure(x * 2.0**40)
    assert torch.equal(here.mean * 2.0**40, there.mean)
    assert torch.equal(here.var * 2.0**80, there.var)


def test_a_variance_beyond_its_dtype_is_infinite_and_right_in_float64():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 1e30
    assert measure(x).var.isinf().all()
    torch.testing.assert_close(measure(x.double()).var, x.double().var(0, correction=0))


@pytest.mark.parametrize("count", [8, 5000])
def test_a_variance_that_does_not_fit_is_infinite_up_to_the_largest_float32(count):
    x = drawn(count, seed=0).float().clamp(-1, 1) * 3e38
    assert measure(x).var.isinf().all()
    assert measure(x.abs()).var.isinf().all()


def test_joined_parts_are_those_of_all_values() -> None:
    x = torch.randn(23, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 100
    found, expected = join([measure(part) for part in x.split([1, 9, 13])]), measure(x)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.var, expected.var)
    assert found.count == 23
