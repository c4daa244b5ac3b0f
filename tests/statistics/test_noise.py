import math

import pytest
import torch

from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import (
    apart,
    moments_by_sample,
    moments_of_samples,
    sample_noise,
    sampling_error,
    standardized_distance,
    update_noise_,
)
from tests.support.layers import drawn


def mean_noise(make) -> float:
    found = [sample_noise(x, measure(x)) for x in map(make, range(50))]
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("shape", [(64, 32), (64, 32, 9), (64, 32, 3, 3)])
def test_of_independent_values_it_is_one_over_the_positions(shape):
    assert mean_noise(lambda seed: drawn(*shape, seed=seed) * 3 + 5) == pytest.approx(
        1 / torch.Size(shape[2:]).numel(), rel=0.05
    )


def test_of_positions_that_agree_it_is_one():
    assert mean_noise(lambda seed: drawn(64, 32, 1, seed=seed).expand(64, 32, 9)) == pytest.approx(1, rel=0.05)


def test_in_between_it_is_the_share_that_positions_have_in_common():
    """A sample's own part has half of the variance: its mean's variance is ½ + ½/9."""

    def make(seed):
        return drawn(64, 32, 1, seed=seed) + drawn(64, 32, 9, seed=seed + 1000)

    assert mean_noise(make) == pytest.approx(0.5 + 0.5 / 9, rel=0.05)


def test_it_predicts_how_far_batch_means_are_from_the_truth():
    batches = [drawn(16, 32, 1, seed=seed) + drawn(16, 32, 9, seed=seed + 1000) for seed in range(100)]
    noise = torch.stack([sample_noise(x, measure(x)) for x in batches]).mean() / 16
    truth = Moments(mean=torch.zeros(32).double(), var=torch.full((32,), 2.0).double(), count=1)
    seen = torch.stack([standardized_distance(measure(x), truth, eps=0.0) for x in batches]).mean()
    assert seen.item() == pytest.approx(noise.item(), rel=0.1)


def test_channels_without_variance_tell_nothing():
    x = drawn(64, 32, 9)
    with_dead = torch.cat([x, torch.ones(64, 5, 9, dtype=torch.float64)], 1)
    torch.testing.assert_close(sample_noise(with_dead, measure(with_dead)), sample_noise(x, measure(x)))
    assert sample_noise(with_dead[:, 32:], measure(with_dead[:, 32:])).item() == 1


def test_it_looks_at_four_samples_from_all_over_the_batch():
    """Neighbours may be alike, as where classes come one after the other."""
    x = drawn(64, 32, 9)
    moments = measure(x)
    assert torch.equal(sample_noise(x, moments), sample_noise(x[::16], moments))


@pytest.mark.parametrize("samples", [2, 3])
def test_it_looks_at_all_of_fewer_samples(samples):
    x = drawn(samples, 32, 9)
    expected = (x.mean(2).var(0) / measure(x).var).mean()
    torch.testing.assert_close(sample_noise(x, measure(x)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("x", [drawn(1, 32, 9), torch.ones(1, 32, 9)], ids=["varying", "constant"])
def test_a_single_sample_tells_nothing(x):
    noise = torch.full((1,), 0.5, dtype=x.dtype)
    update_noise_(noise, x, measure(x), momentum=0.25)
    assert noise.item() == 0.5


def test_a_running_noise_follows_by_its_momentum_and_not_what_is_not_finite():
    x, noise = drawn(64, 32, 9), torch.full((1,), 0.5, dtype=torch.float64)
    seen = sample_noise(x, measure(x))
    update_noise_(noise, x, measure(x), momentum=0.25)
    torch.testing.assert_close(noise, (0.75 * 0.5 + 0.25 * seen).view(1))
    before = noise.clone()
    update_noise_(noise, x * float("inf"), measure(x), momentum=0.25)
    assert torch.equal(noise, before)


def test_a_distance_is_in_stored_deviations_and_squared():
    batch = Moments(mean=torch.tensor([3.0, 0.0]), var=torch.ones(2), count=4)
    stored = Moments(mean=torch.tensor([1.0, 0.0]), var=torch.tensor([0.5, 1.0]), count=4)
    assert standardized_distance(batch, stored, eps=0.5).item() == pytest.approx((4 / 1.0 + 0) / 2)


def test_channels_that_are_not_finite_are_left_out_of_a_distance():
    batch = Moments(mean=torch.tensor([3.0, float("nan")]), var=torch.ones(2), count=4)
    stored = Moments(mean=torch.tensor([1.0, 0.0]), var=torch.ones(2), count=4)
    assert standardized_distance(batch, stored, eps=0.0).item() == 4


@pytest.mark.parametrize("shape", [(40, 32), (40, 32, 5), (40, 32, 2, 3)])
def test_the_sampling_error_is_that_of_repeated_batches(shape):
    batches = [
        drawn(*shape, seed=seed) ** 2 + drawn(40, 32, *[1] * (len(shape) - 2), seed=-seed) for seed in range(200)
    ]
    moments = [measure(x) for x in batches]
    errors = [sampling_error(moments_by_sample(x), m) for x, m in zip(batches, moments, strict=True)]
    for at, values in enumerate((torch.stack([m.mean for m in moments]), torch.stack([m.var for m in moments]))):
        stated = torch.stack([each[at] for each in errors]).mean()
        assert stated.item() == pytest.approx(values.var(0).mean().item(), rel=0.1)


def test_moments_by_sample_are_those_of_each_sample_alone():
    x = drawn(4, 3, 5, 2)
    found = moments_by_sample(x)
    for at in range(4):
        alone = measure(x[at : at + 1])
        torch.testing.assert_close((found.mean[at], found.var[at]), (alone.mean, alone.var))


def test_a_single_sample_has_no_sampling_error():
    x = drawn(1, 3, 5)
    assert all(each.isnan().all() for each in sampling_error(moments_by_sample(x), measure(x)))


def test_moments_of_samples_are_those_of_all_values() -> None:
    x = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found, expected = moments_of_samples(moments_by_sample(x)), measure(x)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.var, expected.var)
    assert found.count == 42


def test_moments_are_apart_by_shift_and_log_gain_in_standard_deviations():
    one, other = (
        Moments(mean=torch.full((2,), mean), var=torch.full((2,), var), count=1)
        for mean, var in ((0.0, 1.0), (3.0, 4.0))
    )
    expected = (9 / 2.5 + math.log(2) ** 2) ** 0.5
    assert apart(one, other, eps=0) == pytest.approx(expected)
    assert apart(other, one, eps=0) == pytest.approx(expected)
    assert apart(one, one, eps=0) == 0
