"""Batches gone through and fed to a model."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.optim.swa_utils import AveragedModel

from steadynorm.surgery.batches import Batches, evaluating, feed, randomness_kept, unwrapped


class Echo(nn.Module):
    """Gives what it was called with."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *arguments, **named):
        return arguments, named


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


X = torch.ones(2)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, ((X,), {})),
        ((X, 5), ((X,), {})),
        ([X], ((X,), {})),
        (Pair(X, X), ((X,), {})),
        ({"x": X, "n": 5}, ((), {"x": X, "n": 5})),
        (([X, X], 5), (([X, X],), {})),
    ],
)
def test_each_form_becomes_the_arguments_it_stands_for(batch, expected):
    assert repr(feed(Echo(), batch)) == repr(expected)


def test_a_packed_sequence_is_one_argument():
    packed = pack_sequence([X, X[:1]])
    ((found,), _) = feed(Echo(), packed)
    assert type(found) is type(packed)


@pytest.mark.parametrize("batch", [X, (X, X), {"x": [X]}, Pair(X, X)])
def test_tensors_go_to_the_device_of_the_model(batch):
    arguments, named = feed(Echo("meta"), batch)
    found = arguments[0] if arguments else named["x"][0]
    assert found.device.type == "meta"


@pytest.mark.parametrize("batch", [5, "text", None, ()])
def test_another_form_is_refused(batch):
    with pytest.raises(TypeError, match=r"feed: a batch must be a tensor, .* got"):
        feed(Echo(), batch)


def test_what_comes_once_is_kept_as_far_as_it_was_taken():
    taken = []

    def loader():
        for number in range(5):
            taken.append(number)
            yield number

    batches = Batches(loader(), "verb_")
    source = iter(batches)
    assert [next(source), next(source)] == [0, 1]
    assert list(batches.first(2)) == [0, 1]
    assert taken == [0, 1]
    assert list(batches) == [0, 1, 2, 3, 4]


def test_what_can_be_gone_through_again_is_not_kept():
    batches = Batches(range(3), "verb_")
    assert list(batches) == list(batches) == [0, 1, 2]
    assert not batches._kept


def test_fewer_batches_than_before_are_refused():
    with pytest.raises(ValueError, match="verb_: a second pass must give as many batches, got 2 after 3"):
        list(Batches([1, 2], "verb_").first(3))


def test_randomness_is_kept():
    state = torch.get_rng_state()
    with randomness_kept(Echo()):
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_one_by_one_also_after_an_exception():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_wrapped_model_is_found():
    model, average = Echo(), AveragedModel(Echo())
    assert unwrapped(torch.compile(average, backend="eager")) is average.module
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(model) is model
