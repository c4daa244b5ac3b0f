import numpy as np
import pytest

from steadynorm.lab.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise

COUNT = 100 * 32 * 32 * 3


def _grey(level):
    return np.full((100, 32, 32, 3), level)


def _random():
    return np.random.default_rng(0)


def test_gaussian_noise_has_mean_zero():
    assert abs(gaussian_noise(_grey(0.5), _random(), 0.1).mean() - 0.5) < 5 * 0.1 / COUNT**0.5


def test_gaussian_noise_has_the_deviation_asked_for():
    # The sampling error of a standard deviation is 1 / sqrt(2 n) of it.
    assert gaussian_noise(_grey(0.5), _random(), 0.1).std() == pytest.approx(0.1, rel=5 / (2 * COUNT) ** 0.5)


def test_gaussian_noise_differs_between_values_of_one_pixel():
    assert len(np.unique(gaussian_noise(_grey(0.5), _random(), 0.1))) > 0.99 * COUNT


@pytest.mark.parametrize("level", [0.1, 0.9])
def test_shot_noise_keeps_the_mean(level):
    assert abs(shot_noise(_grey(level), _random(), 50).mean() - level) < 5 * (level / 50 / COUNT) ** 0.5


@pytest.mark.parametrize("level", [0.1, 0.9])
def test_variance_of_shot_noise_is_light_over_photons(level):
    assert shot_noise(_grey(level), _random(), 50).var() == pytest.approx(level / 50, rel=0.02)


def test_shot_noise_counts_whole_photons():
    counts = shot_noise(_grey(0.5), _random(), 50) * 50
    np.testing.assert_allclose(counts, np.rint(counts), rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_impulse_noise_replaces_half_of_the_share_by_each_end(value):
    found = (impulse_noise(_grey(0.5), _random(), 0.07) == value).sum()
    assert abs(found - 0.035 * COUNT) < 5 * (0.035 * 0.965 * COUNT) ** 0.5


def test_impulse_noise_leaves_other_values_alone():
    assert set(np.unique(impulse_noise(_grey(0.5), _random(), 0.07))) == {0.0, 0.5, 1.0}
