"""Merging over ranks, with collectives that are played by one process."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadynorm.statistics import Moments, measure
from steadynorm.statistics import ranks as over
from steadynorm.statistics.ranks import Ranks, check_agreement, merge_over, pool_over
from tests.support.layers import drawn

counts_of_ranks = st.lists(st.integers(0, 5), min_size=2, max_size=6)


def ranks_with(count):
    return [Ranks("played", rank, count) for rank in range(count)]


def played(monkeypatch, act, inputs):
    """What each rank gets where all call ``act``, which gathers once."""
    sent = []
    with monkeypatch.context() as patched:
        patched.setattr(over, "gather_over", lambda ranks, values: sent.append(values) or values.repeat(ranks.size))
        for ranks, given_ in zip(ranks_with(len(inputs)), inputs, strict=True):
            act(ranks, given_)
        patched.setattr(over, "gather_over", lambda ranks, values: torch.cat(sent))
        return [act(ranks, given_) for ranks, given_ in zip(ranks_with(len(inputs)), inputs, strict=True)]


def parts_of(counts, mean=5.0, dtype=torch.float64):
    return [(drawn(count, 3, seed=seed) * (seed + 1) + mean).to(dtype) for seed, count in enumerate(counts)]


@settings(deadline=None, max_examples=40)
@given(counts_of_ranks, st.sampled_from([0.0, 1e4]), st.booleans())
def test_merged_moments_are_those_of_all_values(counts, mean, as_tensor):
    parts = parts_of(counts, mean)
    measured = [measure(part) for part in parts]
    if as_tensor:  # then the moments of no values must be numbers
        measured = [
            Moments(mean=m.mean.nan_to_num(), var=m.var.nan_to_num(), count=torch.tensor(m.count)) for m in measured
        ]
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = played(monkeypatch, merge_over, measured)
    whole = measure(torch.cat(parts)) if sum(counts) else Moments(mean=torch.zeros(3), var=torch.zeros(3), count=0)
    for merged in found:
        torch.testing.assert_close(merged.mean, whole.mean.double(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.var, whole.var.double(), rtol=1e-9, atol=1e-9)
        assert merged.count.item() == sum(counts)


def test_a_large_merged_mean_is_rounded_once(monkeypatch):
    """The shares are rounded too, and do not quite make one together."""
    counts = (11, 3, 7, 5, 13)
    means = 1e4 + drawn(5, 100, seed=1, dtype=torch.float32)
    given = [Moments(mean=m, var=torch.ones(100), count=count) for m, count in zip(means, counts, strict=True)]
    exact = (means.double() * torch.tensor(counts)[:, None]).sum(0) / sum(counts)
    merged = played(monkeypatch, merge_over, given)[0]
    half_a_unit = 2**13 * torch.finfo(torch.float32).eps / 2
    assert (merged.mean.double() - exact).abs().max() < 1.01 * half_a_unit


def test_infinite_values_make_an_infinite_mean(monkeypatch):
    parts = parts_of((3, 2))
    parts[0][0, 1] = float("inf")
    merged = played(monkeypatch, merge_over, [measure(part) for part in parts])[1]
    assert merged.mean.isinf().tolist() == [False, True, False]


def test_gradients_are_those_of_the_moments_of_all_values(monkeypatch):
    parts = [part.requires_grad_() for part in parts_of((4, 1, 3))]
    measured = [measure(part) for part in parts]
    d_mean, d_var = drawn(3, 3, seed=11), drawn(3, 3, seed=12)
    found = played(monkeypatch, pool_over, measured)
    sums = torch.stack((d_mean.sum(0), d_var.sum(0)))
    monkeypatch.setattr(over, "_all_reduce", lambda ranks, values: sums)
    gradients = [
        torch.autograd.grad([pooled.mean, pooled.var], part, [d_mean[rank], d_var[rank]])[0]
        for rank, (pooled, part) in enumerate(zip(found, parts, strict=True))
    ]
    whole = torch.cat([part.detach() for part in parts]).requires_grad_()
    moments = measure(whole)
    (expected,) = torch.autograd.grad([moments.mean, moments.var], whole, list(sums))
    torch.testing.assert_close(torch.cat(gradients), expected, rtol=1e-10, atol=1e-10)


def test_ranks_that_agree_are_let_through(monkeypatch):
    played(monkeypatch, lambda ranks, _: check_agreement(ranks, 3, torch.float32, torch.device("cpu")), [None, None])


def test_a_rank_of_another_size_is_named(monkeypatch):
    monkeypatch.setattr(over, "gather_over", lambda *_: torch.tensor([3, 0, 5, 0]))
    with pytest.raises(RuntimeError, match=r"^moments over ranks: .* got rank 0 3 in torch.float32, rank 1 5 in"):
        check_agreement(Ranks("played", 0, 2), 3, torch.float32, torch.device("cpu"))
