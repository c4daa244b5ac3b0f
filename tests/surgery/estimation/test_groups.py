"""Moments of many batches in bounded memory, and how far their average may be off."""

import pytest
import torch

from steadynorm.statistics import Moments, measure
from steadynorm.surgery.estimation.groups import Groups, standard_error
from tests.support.layers import drawn


def filled(number, most=4, channels=2):
    groups = Groups(channels, most)
    batches = [drawn(3 + at % 5, channels, seed=at) + at for at in range(number)]
    for batch in batches:
        groups.add(measure(batch))
    return groups, batches


@pytest.mark.parametrize("number", [1, 4, 5, 8, 9, 33])
def test_there_are_never_more_groups_than_room_for_them_and_no_value_is_lost(number):
    groups, batches = filled(number)
    assert len(groups) <= 4
    found, whole = groups.total(), torch.cat(batches)
    assert found.count == len(whole)
    torch.testing.assert_close(found.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.var, whole.var(0, correction=0), rtol=1e-12, atol=1e-12)


def test_groups_are_of_as_many_batches_each():
    """Of 9 batches with room for 4 groups, the sums are those of batches 1 to 4, 5 to 8, and 9."""
    groups, batches = filled(9)
    total = groups.total()
    parts = [measure(torch.cat(batches[at : at + 4])) for at in (0, 4, 8)]
    expected = sum(part.count**2 * (part.mean - total.mean).square() for part in parts)
    scatter = groups.scatter(total)
    torch.testing.assert_close(scatter[:2], expected, rtol=1e-10, atol=1e-10)
    assert scatter[-1] == 3


def test_no_batches_count_nothing():
    assert Groups(2).total().count == 0


def test_the_standard_error_is_how_far_estimates_are_off():
    """Of 600 estimates from 10 unequal batches each, which share a shift of their own."""
    means, variances, errors = [], [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        groups = Groups(1)
        for at in range(10):
            size = 2 + at % 3
            shift = torch.randn(1, 1, generator=generator, dtype=torch.float64)
            groups.add(measure(torch.randn(size, 1, generator=generator, dtype=torch.float64) + shift))
        total = groups.total()
        means.append(total.mean)
        variances.append(total.var)
        scale = torch.stack((total.var.sqrt(), total.var))
        errors.append((standard_error(groups.scatter(total), total, 0.0) * scale).square())
    off = torch.stack((torch.cat(means).var(), torch.cat(variances).var())).sqrt()
    stated = torch.stack(errors).mean(0).sqrt().flatten()
    # The variance's is low by a fifth with so few batches, because v is fitted to them.
    torch.testing.assert_close(stated[0], off[0], rtol=0.1, atol=0)
    torch.testing.assert_close(stated[1], off[1], rtol=0.3, atol=0)


def test_a_channel_far_below_eps_does_not_matter():
    total = Moments(mean=torch.zeros(1), var=torch.full((1,), 1e-12, dtype=torch.float64), count=10)
    scatter = torch.tensor([1e-12, 1e-24, 5.0], dtype=torch.float64)
    assert standard_error(scatter, total, 1e-5).max() < 1e-3
    assert standard_error(scatter, total, 0.0).max() > 0.1
