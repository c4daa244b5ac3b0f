"""Self-tuned running statistics in one compiled call: what the tensor operations give, on streams of every kind."""

import copy

import pytest
import torch

from steadynorm import BatchNorm2d, backend
from steadynorm.ops import _numba_self_tuned as compiled
from steadynorm.statistics import Moments, SelfTuned
from steadynorm.statistics.self_tuned import learning_rate
from tests.support.layers import drawn

C, COUNT = 5, 50
JUDGED = ("experts", "mass", "noise", "weights", "momenta")


def stream(kind, steps=60):
    """Mean and biased variance of every batch, shape (T, 2, C)."""
    noise = drawn(steps, 2, C, seed=1) * 0.1
    walk = {
        "stationary": torch.zeros(steps, 2, C),
        "walk": drawn(steps, 2, C, seed=2).cumsum(0) * 0.2,
        "drift": torch.arange(steps).view(-1, 1, 1) * 0.05,
        "jump": (torch.arange(steps) > steps // 2).view(-1, 1, 1) * 3.0,
    }[kind]
    found = noise + walk
    found[:, 1] = found[:, 1].exp()
    return found


def followed(batches, counts=None):
    """State and estimates by tensor operations in float64, and by the compiled call."""
    state = SelfTuned.begin(C, dtype=torch.float64)
    plain = SelfTuned.begin(C)
    bank = [getattr(plain, name) for name in JUDGED]
    running = torch.zeros(C), torch.ones(C)
    for step, (mean, var) in enumerate(batches):
        count = COUNT if counts is None else counts[step]
        state = state.follow(Moments(mean=mean, var=var, count=count))
        compiled.update_running_(bank, step + 1, learning_rate(C), mean.float(), var.float(), count, *running)
    return [*(getattr(state, name) for name in JUDGED), *state.estimate()], [*bank, *running]


@pytest.mark.parametrize("kind", ["stationary", "walk", "drift", "jump"])
@pytest.mark.parametrize("counts", [None, [20, 90] * 30], ids=["equal", "unequal"])
def test_state_and_estimates_are_those_of_the_tensor_operations(kind, counts):
    expected, found = followed(stream(kind).double(), counts)
    for name, ours, theirs in zip((*JUDGED, "mean", "var"), found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=1e-5, msg=f"{name}\n{ours}\n{theirs}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_channel(value):
    batches = stream("walk").double()
    batches[20, :, 2] = value
    expected, found = followed(batches)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        fine = theirs.isfinite()
        torch.testing.assert_close(ours.double()[fine], theirs[fine], rtol=2e-4, atol=1e-5)


def test_a_channel_that_never_moves_has_no_say():
    batches = stream("walk").double()
    batches[:, :, 1] = 1.5
    expected, found = followed(batches)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=1e-5)


def test_a_layer_follows_as_the_same_layer_in_float64():
    layer = BatchNorm2d(6, running="self_tuned")
    wide = copy.deepcopy(layer).double()
    for seed in range(30):
        x = drawn(4, 6, 5, 5, seed=seed) + 0.1 * seed
        layer(x.float())
        wide(x)
    for (name, ours), theirs in zip(layer.named_buffers(), wide.buffers(), strict=True):
        if name != "_window":
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-3, atol=1e-4, msg=name)


def test_a_layer_takes_the_compiled_call_where_it_may(monkeypatch):
    layer, calls = BatchNorm2d(6, running="self_tuned"), []
    monkeypatch.setattr(compiled, "update_running_", lambda *given: calls.append(given))
    layer(torch.randn(4, 6, 5, 5))
    assert len(calls) == 1
    with backend("reference"):
        layer(torch.randn(4, 6, 5, 5))
    layer.double()(torch.randn(4, 6, 5, 5).double())
    assert len(calls) == 1


@pytest.mark.parametrize("odd", ["float64", "subclass", "gaps", "counts"])
def test_what_it_cannot_take_is_left_to_tensor_operations(odd):
    class Wrapped(torch.Tensor):
        pass

    bank = [getattr(SelfTuned.begin(C), name) for name in JUDGED]
    numbers = [torch.zeros(C) for _ in range(4)]
    assert compiled.takes(bank, *numbers)
    if odd == "counts":
        bank[1] = torch.zeros(11, 2, C)
    else:
        other = torch.zeros(C)
        numbers[2] = {
            "float64": other.double(),
            "subclass": other.as_subclass(Wrapped),
            "gaps": torch.zeros(2 * C)[::2],
        }[odd]
    assert not compiled.takes(bank, *numbers)


def test_estimates_that_a_graph_needs_are_not_changed_unnoticed():
    layer = BatchNorm2d(6, running="self_tuned")
    use = (torch.ones(6, requires_grad=True) * layer.running_var).sum()
    layer(torch.randn(4, 6, 5, 5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        use.backward()
