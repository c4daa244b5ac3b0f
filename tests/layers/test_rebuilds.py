"""What tools that rebuild a batch norm do to a fused activation: refused, left alone, or right after to_torch_."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion

import steadynorm
from steadynorm.surgery import to_torch_
from tests.support.layers import drawn, randomize_

X = drawn(4, 3, 5, 5).float()
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao and torch.jit are deprecated, and importing says so


def model_of(activation="relu", cls=steadynorm.BatchNorm2d):
    return randomize_(nn.Sequential(nn.Conv2d(3, 6, 3), cls(6, activation=activation))).eval()


@pytest.mark.parametrize(
    "cls", [steadynorm.BatchNorm2d, steadynorm.BatchRenorm2d, steadynorm.FrozenBatchNorm2d, steadynorm.SyncBatchNorm]
)
def test_torch_synchronises_none_that_fuses_an_activation(cls):
    with pytest.raises(TypeError, match=rf"{cls.__name__}: a layer rebuilt by convert_sync_batchnorm must fuse no"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model_of(cls=cls))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("convert_sync_batchnorm", r"surgery\.convert_\(model, 'sync_batch_norm'\)"),
        ("convert_syncbn_model", r"surgery\.convert_\(model, 'sync_batch_norm'\)"),
        ("freeze_batch_norm_2d", r"surgery\.freeze_\(model\)"),
        ("_batchnorm_to_groupnorm", r"surgery\.convert_\(model, 'group_norm'\)"),
    ],
)
def test_the_functions_of_others_are_known_by_name(name, instead):
    def rebuild(layer):
        return layer.affine

    rebuild.__code__ = rebuild.__code__.replace(co_name=name)
    with pytest.raises(TypeError, match=rf"BatchNorm2d: a layer rebuilt by {name} must .* Use steadynorm\.{instead}"):
        rebuild(steadynorm.BatchNorm2d(3, activation="relu"))
    assert rebuild(steadynorm.BatchNorm2d(3)) is True


def test_torch_synchronises_one_without_and_what_to_torch_gives():
    plain, torchs = model_of(None), model_of()
    expected = plain(X), torchs(X)
    to_torch_(torchs)
    for model, y in zip((plain, torchs), expected, strict=True):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert [each for each in model.modules() if isinstance(each, nn.SyncBatchNorm)]
        torch.testing.assert_close(model(X), y)


def test_torch_fx_leaves_ours_alone():
    from torch.fx.experimental.optimization import fuse

    model = model_of()
    torch.testing.assert_close(fuse(copy.deepcopy(model))(X), model(X))


def test_torchs_quantiser_fuses_none_of_ours():
    from torch.ao.quantization import fuse_modules

    with pytest.raises((AssertionError, NotImplementedError), match=r"did not find fuser|Cannot fuse modules"):
        fuse_modules(model_of(), ["0", "1"])


def test_torchs_quantiser_fuses_what_to_torch_gives():
    from torch.ao.quantization import fuse_modules

    model = model_of()
    expected = model(X)
    to_torch_(model)
    fused = fuse_modules(model, [["0", "1.norm", "1.activation"]])
    torch.testing.assert_close(fused(X), expected)
    assert not [each for each in fused.modules() if isinstance(each, nn.BatchNorm2d)]


def test_the_two_functions_that_cannot_be_stopped_are_right_for_the_norm_that_to_torch_gives():
    """They read nothing that no forward reads, so on ours they give the norm alone, see docs/surgery.md."""
    model = model_of()
    expected = model(X)
    assert fusion.fuse_conv_bn_eval(model[0], model[1])(X).min() < 0
    to_torch_(model)
    fused = fusion.fuse_conv_bn_eval(model[0], model[1].norm)
    torch.testing.assert_close(model[1].activation(fused(X)), expected)
    linear = randomize_(nn.Sequential(nn.Linear(3, 6), steadynorm.BatchNorm1d(6, activation="relu"))).eval()
    x = drawn(5, 3).float()
    expected = linear(x)
    to_torch_(linear)
    torch.testing.assert_close(linear[1].activation(fusion.fuse_linear_bn_eval(linear[0], linear[1].norm)(x)), expected)


def test_affine_is_a_plain_attribute_to_everybody_else():
    norm = steadynorm.BatchNorm2d(3, activation="relu")
    assert norm.affine is True and vars(norm)["affine"] is True
    assert "affine=True" in repr(norm)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        twin.affine = False
        assert (twin.affine, norm.affine) == (False, True)
    del vars(norm)["affine"]
    with pytest.raises(AttributeError, match="has no attribute 'affine'"):
        norm.affine  # noqa: B018


def test_dynamic_quantisation_of_a_model_with_ours_goes_on():
    model = nn.Sequential(model_of(), nn.Flatten(), nn.Linear(54, 4))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert (quantized(X) - model(X)).abs().max() < 0.2
