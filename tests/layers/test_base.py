"""Constructors and what a layer shows of itself."""

import inspect

import pytest
import torch
from torch import nn

import steadynorm

NORMS = [name for name in steadynorm.layers.__all__ if name[0].isupper() and name != "NormAddActivation"]


@pytest.mark.parametrize("name", NORMS)
def test_a_constructor_shows_all_its_arguments_in_torchs_order(name):
    found = inspect.signature(getattr(steadynorm.layers, name)).parameters
    theirs = nn.SyncBatchNorm if name == "SyncBatchNorm" else nn.BatchNorm2d
    torchs_own = [each for each in inspect.signature(theirs).parameters if each != "bias"]
    positional = [key for key, each in found.items() if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == torchs_own
    for key, each in inspect.signature(steadynorm.BatchNorm2d).parameters.items():
        assert (found[key].kind, found[key].default, found[key].annotation) == (
            each.kind,
            each.default,
            each.annotation,
        )
    assert not {each.kind for each in found.values()} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }


@pytest.mark.parametrize("name", NORMS)
def test_every_argument_reaches_the_layer(name):
    more = {"ghost_batch_size": 2} if "Ghost" in name else {}
    ours = {"activation": "silu", "nonfinite": "skip", "update_every": 4, "running": "self_tuned"}
    layer = getattr(steadynorm.layers, name)(3, eps=0.5, momentum=0.25, bias=False, dtype=torch.float64, **ours, **more)
    assert (layer.num_features, layer.eps, layer.momentum, layer.weight.dtype) == (3, 0.5, 0.25, torch.float64)
    assert layer.bias is None and {key: getattr(layer, key) for key in ours} == ours
    assert "activation='silu', nonfinite='skip', update_every=4, running='self_tuned'" in repr(layer)


def test_the_repr_leaves_out_how_the_estimates_follow_where_that_is_as_in_torch():
    assert repr(steadynorm.BatchNorm2d(3)).endswith(", activation=None)")
    assert repr(steadynorm.BatchNorm2d(3, running="self_tuned")).endswith(", activation=None, running='self_tuned')")


@pytest.mark.parametrize("name", NORMS)
def test_errors_of_a_constructor_name_its_class(name):
    cls = getattr(steadynorm.layers, name)
    more = {"ghost_batch_size": 2} if "Ghost" in name else {}
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'epsilon'"):
        cls(3, epsilon=1e-3, **more)
    if name not in ("MaskedBatchNorm1d", "SyncBatchNorm") and not more:
        with pytest.raises(TypeError, match=rf"{name[:-2]}(1d|2d|3d)?\.__init__\(\) missing .* 'num_features'"):
            cls()


def test_a_subclass_keeps_its_own_constructor_and_the_order_of_its_bases():
    class Left(steadynorm.BatchNorm2d):
        pass

    class Right(steadynorm.BatchNorm2d):
        def __init__(self, planes, **options):
            super().__init__(2 * planes, **options)

    class Both(Left, Right):
        pass

    assert Both(3).num_features == 6
    assert "options" in inspect.signature(Right).parameters
    with pytest.raises(TypeError, match=r"^Right\.__init__\(\) got an unexpected keyword argument 'epsilon'"):
        Right(3, epsilon=1)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_errors_of_a_forward_name_the_class(name, training):
    class Mine(getattr(steadynorm.layers, name)):
        pass

    layer = Mine(3, **({"ghost_batch_size": 2} if "Ghost" in name else {})).train(training)
    x = torch.randn(4, 3) if "1d" in name or name == "SyncBatchNorm" else torch.randn(4, 3, *[2] * int(name[-2]))
    mask = {"mask": torch.ones(4, dtype=torch.bool)} if "Masked" in name else {}
    with pytest.raises(RuntimeError, match=r"^Mine: residual must have the input's shape"):
        layer(x, residual=x[:, :2], **mask)
    with pytest.raises(RuntimeError, match=r"^Mine: input must be of a floating dtype"):
        layer(x.long(), **mask)
    if mask:
        with pytest.raises(ValueError, match=r"^Mine: mask must be boolean"):
            layer(x, mask=mask["mask"].long())
