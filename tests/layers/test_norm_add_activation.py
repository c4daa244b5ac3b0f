import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadynorm
from steadynorm.layers import NormAddActivation
from tests.support.layers import drawn, randomize_

X, RESIDUAL = drawn(4, 6, 3, 3), drawn(4, 6, 3, 3, seed=1)
ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "leaky_relu": F.leaky_relu, "silu": F.silu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_normalizes_adds_and_activates(activation):
    norm = randomize_(nn.GroupNorm(2, 6).double())
    wrapped = NormAddActivation(norm, activation)
    assert torch.equal(wrapped(X), ACTIVATIONS[activation](norm(X)))
    assert torch.equal(wrapped(X, residual=RESIDUAL), ACTIVATIONS[activation](norm(X) + RESIDUAL))


def test_checkpoints_of_our_layer_and_of_it_load_into_each_other():
    ours = randomize_(nn.Sequential(nn.Conv2d(3, 6, 1), steadynorm.BatchNorm2d(6, activation="relu")).double()).eval()
    other = nn.Sequential(nn.Conv2d(3, 6, 1), NormAddActivation(nn.BatchNorm2d(6), "relu")).double().eval()
    other.load_state_dict(ours.state_dict())
    x = drawn(4, 3, 3, 3)
    assert torch.equal(other(x), ours(x))
    randomize_(other)
    ours.load_state_dict(other.state_dict())
    assert torch.equal(other(x), ours(x))
    assert list(other.state_dict()) == list(ours.state_dict())


def test_a_copy_keeps_the_state_keys():
    model = nn.Sequential(NormAddActivation(nn.BatchNorm2d(6), "relu"))
    assert list(copy.deepcopy(model).state_dict()) == list(nn.Sequential(nn.BatchNorm2d(6)).state_dict())


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of"):
        NormAddActivation(nn.BatchNorm2d(6), "tanh")
