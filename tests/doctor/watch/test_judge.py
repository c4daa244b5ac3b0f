"""Verdicts on a stretch, on distances that are made up."""

import math

import pytest
import torch

from steadynorm.doctor.watch.judge import Judge
from steadynorm.doctor.watch.levels import Levels

T, L = 32, 3


def levels(seed=0, **changed):
    """Give the distances of a healthy stretch; a changed one is a tensor that is broadcast."""
    generator = torch.Generator().manual_seed(seed)

    def small(*shape, size):
        return size * (1 + torch.rand(*shape, generator=generator, dtype=torch.double)) / 2

    made = {
        "finite": torch.ones(T, L).double(),
        "mean": small(T, L, size=0.02),
        "var": small(T, L, size=0.08),
        "step_mean": small(T, L, size=0.04),
        "running_mean": small(T, L, size=0.02),
        "running_var": small(T, L, size=0.1),
        "lag_mean": small(L, size=0.01),
        "lag_var": small(L, size=0.1),
        "dead": torch.zeros(L).double(),
    }
    for name, value in changed.items():
        made[name] = torch.as_tensor(value).double().expand(made[name].shape).clone()
    return Levels(**made)


def begun():
    """Give a judge who has seen enough of a healthy training."""
    judge = Judge([0.1] * L)
    for seed in range(8):
        assert judge.judge(levels(seed), None) == []
    return judge


def at(row, layer, value, healthy):
    changed = healthy.clone()
    changed[row, layer] = value
    return changed


def told(judge, *stretches, classes=None):
    return [[(each.check, each.layers, each.over) for each in judge.judge(one, classes)] for one in stretches]


def test_single_batches_that_are_far_off_are_outliers():
    judge, healthy = begun(), levels()
    (verdict,) = judge.judge(levels(mean=at(5, 1, 4.0, healthy.mean), var=at(5, 1, -2.0, healthy.var)), None)
    assert (verdict.check, verdict.layers) == ("outlier-statistics", (1,))
    assert verdict.rows.nonzero().flatten().tolist() == [5]
    assert verdict.evidence["mean off by, in standard deviations"] == pytest.approx(2.0)
    assert verdict.evidence["variance off by a factor of"] == pytest.approx(math.exp(-2))
    assert told(judge, levels()) == [[]]


def test_a_distance_that_is_usual_for_a_layer_is_none():
    judge = Judge([0.1] * L)
    for seed in range(12):
        noisy = levels(seed)
        noisy.mean[:, 2] *= 10
        assert judge.judge(noisy, None) == []
    noisy.mean[3, 2] = 4.0
    assert told(judge, noisy) == [[]]
    noisy.mean[3, 0] = 4.0
    assert told(judge, noisy) == [[("outlier-statistics", (0,), False)]]


@pytest.mark.parametrize("rows", [slice(0, 4), slice(28, 32)])
def test_a_change_that_is_under_way_is_no_outlier(rows):
    judge, healthy = begun(), levels()
    mean = healthy.mean.clone()
    mean[rows, 0] = 4.0
    assert told(judge, levels(mean=mean)) == [[]]
    mean[:3, 0] = 4.0
    mean[10, 0] = 4.0
    (verdict,) = judge.judge(levels(mean=mean), None)
    assert verdict.rows.nonzero().flatten().tolist() == [10]


@pytest.mark.parametrize("rows", [slice(0, 2), slice(30, 32), slice(10, 15)])
def test_a_few_in_a_row_are_outliers(rows):
    judge, healthy = begun(), levels()
    mean = healthy.mean.clone()
    mean[rows, 0] = 4.0
    (verdict,) = judge.judge(levels(mean=mean), None)
    assert torch.equal(verdict.rows, mean[:, 0] == 4.0)


def test_many_batches_far_off_are_no_outliers():
    judge, healthy = begun(), levels()
    many = healthy.mean.clone()
    many[::3, 0] = 4.0
    assert told(judge, levels(mean=many)) == [[]]


def test_batches_far_off_that_come_again_and_again_are_part_of_the_data():
    judge, healthy = begun(), levels()
    strange = healthy.mean.clone()
    strange[::4, 0] = 4.0
    found = told(judge, *[levels(mean=strange)] * 20)
    assert 1 <= sum(map(len, found)) <= 5
    assert found[5:] == [[]] * 15
    judge = begun()
    once = at(5, 1, 4.0, healthy.mean)
    assert all(len(each) == 1 for each in told(judge, *[levels(mean=once)] * 20))


def test_the_first_stretch_that_is_judged_is_its_own_usual_one():
    judge = Judge([0.1] * L)
    noisy = levels()
    noisy.mean[:] *= 10
    for _ in range(4):
        assert judge.judge(noisy, None) == []
    noisy.mean[3, 2] = 1.5
    assert told(judge, noisy) == [[]]
    judge = Judge([0.1] * L)
    assert told(judge, *[levels()] * 4) == [[]] * 4
    assert told(judge, levels(mean=at(5, 1, 1.5, levels().mean))) == [[("outlier-statistics", (1,), False)]]


@pytest.mark.parametrize(
    ("check", "ill", "partly", "well"),
    [
        ("statistics-lag", {"lag_mean": 0.3}, {"lag_mean": 0.1}, {}),
        ("statistics-lag", {"lag_var": -0.8}, {"lag_var": 0.5}, {}),
        ("train-eval-gap", {"running_mean": 1.5}, {"running_mean": 0.7}, {}),
        ("train-eval-gap", {"running_var": -1.6}, {"running_var": 0.9}, {}),
        ("collapsed-variance", {"dead": 0.7}, {"dead": 0.4}, {}),
    ],
)
def test_what_lasts_begins_after_two_stretches_and_is_over_after_two_without_it(check, ill, partly, well):
    judge = begun()
    ill, partly, well = levels(**ill), levels(**partly), levels(**well)
    assert told(judge, ill, well, ill, partly, ill) == [[]] * 5  # once is not twice in a row
    (first,) = told(judge, ill)[0]
    assert (first[0], set(first[1]), first[2]) == (check, {0, 1, 2}, False)
    *nothing, (last,), again = told(judge, ill, partly, well, partly, well, ill)
    assert nothing == [[]] * 4
    assert (last[0], set(last[1]), last[2]) == (check, {0, 1, 2}, True)
    assert again == []


def test_values_that_are_not_finite_are_told_once():
    judge, healthy = begun(), levels()
    bad = levels(finite=at(4, 1, 0.0, healthy.finite), mean=at(4, 1, math.nan, healthy.mean))
    (verdict,) = judge.judge(bad, None)
    assert (verdict.check, verdict.layers) == ("nonfinite-statistics", (1,))
    assert verdict.rows.nonzero().flatten().tolist() == [4]
    assert told(judge, bad, healthy) == [[], [("nonfinite-statistics", (1,), True)]]


def test_nothing_but_values_that_are_not_finite_is_told_of_a_training_that_has_just_begun():
    judge = Judge([0.1] * L)
    assert told(judge, *[levels(mean=9.0, lag_mean=9.0)] * 3) == [[]] * 3
    judge = Judge([0.1, 0.01, 0.1])
    assert told(judge, *[levels(lag_mean=9.0)] * 15) == [[]] * 15


def test_batches_that_come_twice_are_told():
    judge, healthy = begun(), levels()
    twice = healthy.step_mean.clone()
    twice[1::2] = 1e-6
    assert told(judge, levels(step_mean=twice), levels(step_mean=twice)) == [[], [("double-update", (), False)]]
    judge = begun()
    assert told(judge, *[levels(step_mean=0.0)] * 3) == [[]] * 3  # one and the same batch all the time is the training


def counts(shares, size, seed, forwards=T):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor(shares), forwards * size, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(drawn.view(forwards, size), len(shares)).sum(1).double()


@pytest.mark.parametrize("size", [2, 4, 8, 32, 128])
@pytest.mark.parametrize("shares", [[0.1] * 10, [0.5, 0.5], [0.95, 0.05], [0.7] + [0.3 / 99] * 99, [1e-3] * 1000])
def test_independent_draws_are_never_told(shares, size):
    judge = Judge([0.1] * L)
    for seed in range(60):
        assert judge.judge(levels(), counts(shares, size, seed)) == []


@pytest.mark.parametrize("size", [2, 4, 32])
def test_batches_of_one_class_are_told_and_where(size):
    judge = begun()
    for seed in range(6):
        assert judge.judge(levels(), counts([0.1] * 10, size, seed)) == []
    mixed = counts([0.1] * 10, size, 9)
    mixed[16:] = 0
    mixed[16:, 3] = size
    (verdict,) = judge.judge(levels(), mixed)
    assert verdict.check == "single-class-batch"
    assert verdict.rows.tolist() == [False] * 16 + [True] * 16
    assert verdict.evidence["classes in a batch"] == pytest.approx(1.0)
    assert verdict.evidence["usual"] == pytest.approx(10, rel=0.3)
    assert verdict.lasting
    alone = torch.zeros_like(mixed)
    alone[:, 4] = size
    assert told(judge, levels(lag_mean=2.0), classes=alone) == [[]]  # it explains whatever distances there are
    assert told(judge, levels(), classes=counts([0.1] * 10, size, 10)) == [[("single-class-batch", (), True)]]


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_small_batch_at_the_end_of_each_epoch_is_no_batch_of_one_class(size, classes):
    judge = begun()
    for seed in range(20):
        drawn = counts([1 / classes] * classes, size, seed)
        drawn[seed] = 0
        drawn[seed, 1] = 2
        assert judge.judge(levels(), drawn) == []


def test_one_batch_of_one_class_does_not_last():
    judge = begun()
    for seed in range(6):
        judge.judge(levels(), counts([0.1] * 10, 32, seed))
    mixed = counts([0.1] * 10, 32, 9)
    mixed[4] = 0
    mixed[4, 3] = 32
    (verdict,) = judge.judge(levels(), mixed)
    assert verdict.rows.nonzero().flatten().tolist() == [4]
    assert not verdict.lasting


def test_what_is_wrong_does_not_become_usual():
    judge = begun()
    before = judge.memory["usual_gap"].clone()
    judge.judge(levels(running_mean=1.5), None)
    assert torch.equal(judge.memory["usual_gap"], before)


@pytest.mark.parametrize("unknown", [None, torch.zeros(T, 10)])
def test_batches_of_one_class_end_where_classes_are_not_seen_any_more(unknown):
    judge = begun()
    for seed in range(6):
        judge.judge(levels(), counts([0.1] * 10, 32, seed))
    alone = torch.zeros(T, 10).double()
    alone[:, 4] = 32
    assert told(judge, levels(), classes=alone) == [[("single-class-batch", (), False)]]
    assert told(judge, levels(), classes=unknown) == [[]]
    assert told(judge, levels(), classes=alone) == [[]]
    assert told(judge, *[levels()] * 3, classes=unknown) == [[], [("single-class-batch", (), True)], []]


@pytest.mark.parametrize(
    ("check", "ill", "unknown"),
    [
        ("statistics-lag", {"lag_mean": 0.3}, {"lag_mean": math.nan, "lag_var": math.nan}),
        ("train-eval-gap", {"running_mean": 1.5}, {"running_mean": math.nan, "running_var": math.nan}),
        ("collapsed-variance", {"dead": 0.7}, {"dead": math.nan}),
    ],
)
def test_what_is_not_measured_any_more_is_not_over(check, ill, unknown):
    judge = begun()
    first = told(judge, *[levels(**ill)] * 2)
    assert [each[0] for each in first[1]] == [check]
    assert told(judge, *[levels(**unknown)] * 4) == [[]] * 4
    assert [each[0] for each in told(judge, *[levels()] * 2)[1]] == [check]
