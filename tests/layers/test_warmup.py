import copy

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.ops import _numba


def model():
    return nn.Sequential(
        steadynorm.BatchNorm2d(3, activation="relu"),
        steadynorm.BatchNorm2d(5, activation="relu"),
        nn.Conv2d(5, 5, 1),
        steadynorm.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5),
    )


def test_each_kind_of_layer_is_compiled_once_in_each_layout_and_the_model_stays():
    ours = model()
    before, state = copy.deepcopy(ours.state_dict()), torch.get_rng_state()
    results = list(steadynorm.warmup(ours, layouts=("contiguous", "channels_last")))
    assert [(one.number, one.of) for one in results] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [one.name.split()[-1] for one in results] == ["contiguous", "channels_last"] * 2
    assert all(one.seconds > 0 for one in results)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_compiled_is_not_compiled_again():
    list(steadynorm.warmup(model()))
    assert [one.functions for one in steadynorm.warmup(model())] == [0, 0]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [False, True])
def test_training_then_takes_the_same_compiled_calls(layout, residual, monkeypatch):
    calls = []
    for name in ("normalize", "normalize_grad"):
        kernel = getattr(_numba.kernels, name)
        monkeypatch.setattr(_numba.kernels, name, lambda *given, kernel=kernel: (calls.append(given), kernel(*given)))
    layer = steadynorm.BatchNorm2d(8, activation="relu")
    list(steadynorm.warmup(layer, layouts=(layout,), residual=residual))
    x = torch.randn(16, 8, 32, 32, requires_grad=True)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    with steadynorm.backend("numba"):
        layer(x, x.detach() if residual else None).sum().backward()
    kinds = [[type(value) for value in given] for given in calls]
    assert len(kinds) == 4
    assert kinds[:2] == kinds[2:]


def test_a_model_without_our_layers_is_refused():
    with pytest.raises(ValueError, match=r"warmup: the model must have layers of steadynorm, got Linear with none\."):
        steadynorm.warmup(nn.Linear(2, 2))
