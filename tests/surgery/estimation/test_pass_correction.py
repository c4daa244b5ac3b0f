"""Last pass's statistics brought up to date."""

import torch

from steadynorm.statistics import Moments, measure
from steadynorm.surgery.estimation.pass_correction import MOST_STEPS, PassCorrection
from tests.support.layers import drawn

EPS = 1e-5


def inputs(number=5):
    return [measure(drawn(6, 3, seed=at) + at) for at in range(number)]


def total_of(inputs):
    total = inputs[0]
    for each in inputs[1:]:
        total = total.merge(each)
    return total


def followed(inputs, before=None, total=None):
    correction = PassCorrection(before, total, eps=EPS)
    return correction, [correction.add(each) for each in inputs]


def test_in_the_first_pass_each_input_speaks_for_itself():
    own = inputs()
    for found, expected in zip(followed(own)[1], own, strict=True):
        torch.testing.assert_close((found.mean, found.var), (expected.mean, expected.var))


def test_where_nothing_has_changed_the_statistics_stay():
    own = inputs(MOST_STEPS + 3)
    total = total_of(own)
    correction, _ = followed(own)
    for found in followed(own, correction, total)[1]:
        torch.testing.assert_close((found.mean, found.var), (total.mean, total.var), rtol=1e-13, atol=1e-13)


def test_memory_is_bounded():
    correction, _ = followed(inputs(MOST_STEPS + 3))
    assert len(correction._found) == MOST_STEPS


def test_where_all_inputs_have_changed_alike_so_have_the_statistics():
    own = inputs(MOST_STEPS + 3)
    correction, _ = followed(own)
    changed = [Moments(mean=3 * each.mean - 2, var=9 * each.var, count=each.count) for each in own]
    expected = total_of(changed)
    for found in followed(changed, correction, total_of(own))[1]:
        torch.testing.assert_close((found.mean, found.var), (expected.mean, expected.var), rtol=1e-4, atol=1e-3)


def test_an_empty_input_says_nothing():
    empty = Moments(mean=torch.full((3,), torch.nan), var=torch.full((3,), torch.nan), count=0)
    own = [empty, *inputs()]
    correction, _ = followed(own)
    for found in followed(own, correction, total_of(own[1:]))[1]:
        assert found.mean.isfinite().all()
        assert found.var.isfinite().all()
