"""Batch norms folded into the layer before, against the model as it was, in float64."""

import copy

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.surgery.fold import fold_
from tests.support.layers import drawn, make_native, randomize_


def sequence(*modules, dtype=torch.float64):
    return randomize_(nn.Sequential(*modules)).to(dtype).eval()


def check_folded(model, x, *, norms=1, **options):
    """Fold, and compare with what the model gave before, computed in float64."""
    oracle = copy.deepcopy(model).double()
    change = fold_(model, x, **options)
    assert len(change.changed) == norms
    assert not change.refused
    torch.testing.assert_close(model(x), oracle(x.double()), rtol=1e-11, atol=1e-11)
    return change


LAYERS = [
    (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d, (2, 4, 7)),
    (nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d, (2, 4, 7, 5)),
    (nn.Conv3d(4, 6, 2), nn.BatchNorm3d, (2, 4, 3, 4, 5)),
    (nn.Conv2d(4, 6, 3, groups=2, padding="same"), nn.BatchNorm2d, (2, 4, 7, 5)),
    (nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"), nn.BatchNorm2d, (2, 4, 7, 5)),
    (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d, (2, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), nn.BatchNorm2d, (2, 4, 3, 3)),
    (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d, (2, 4, 3, 4, 5)),
    (nn.Linear(4, 6), nn.BatchNorm1d, (5, 4)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS, ids=lambda each: getattr(each, "__name__", None))
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_every_layer_folds(layer, norm, shape, affine, bias):
    layer = copy.deepcopy(layer)
    if not bias:
        layer.bias = None
    channels = getattr(layer, "out_channels", 6)
    model = sequence(layer, norm(channels, affine=affine), nn.Tanh())
    weight = layer.weight
    change = check_folded(model, drawn(*shape))
    assert type(model[1]) is nn.Identity
    assert layer.weight is weight
    assert change.measured["largest_relative_error"] < 1e-13


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.Conv1d(4, 6, 1)])
def test_a_norm_with_weight_but_no_bias_folds(layer):
    shape = (5, 4) if isinstance(layer, nn.Linear) else (5, 4, 3)
    check_folded(sequence(copy.deepcopy(layer), make_native(nn.BatchNorm1d, 6, bias=False)), drawn(*shape))


OURS = [
    steadynorm.BatchNorm2d(6),
    steadynorm.BatchRenorm2d(6),
    steadynorm.FrozenBatchNorm2d(6),
    steadynorm.GhostBatchNorm2d(6, ghost_batch_size=2),
    steadynorm.SyncBatchNorm(6),
    nn.SyncBatchNorm(6),
    steadynorm.BatchNorm2d(6, bias=False, running="self_tuned", update_every=2),
]


@pytest.mark.parametrize("norm", OURS, ids=lambda norm: type(norm).__name__)
def test_every_kind_that_evaluates_as_batch_norm_folds(norm):
    check_folded(sequence(nn.Conv2d(4, 6, 3), copy.deepcopy(norm)), drawn(2, 4, 5, 5))


def test_a_masked_batch_norm_folds_when_called_without_mask():
    check_folded(sequence(nn.Conv1d(4, 6, 3), steadynorm.MaskedBatchNorm1d(6)), drawn(2, 4, 5))


class Residual(nn.Module):
    """The second of two blocks adds its input, by name or by place."""

    def __init__(self, activation, by_name):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), steadynorm.BatchNorm2d(4, activation=activation)
        self.by_name = by_name

    def forward(self, x):
        return self.norm(self.conv(x), residual=x) if self.by_name else self.norm(self.conv(x), x)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("by_name", [True, False])
def test_residual_and_activation_stay(activation, by_name):
    model = randomize_(Residual(activation, by_name)).double().eval()
    check_folded(model, drawn(2, 4, 5, 5))
    assert type(model.norm) is NormAddActivation
    assert not model.norm.training


def test_an_activation_alone_stays():
    model = sequence(nn.Conv2d(4, 6, 3), steadynorm.BatchNorm2d(6, activation="relu"))
    check_folded(model, drawn(2, 4, 5, 5))
    assert not list(model[1].parameters()) and not list(model[1].buffers())


class Through(nn.Module):
    """A layer, a way of looking at its output, a batch norm."""

    def __init__(self, layer, norm, way):
        super().__init__()
        self.layer, self.norm, self.way = layer, norm, way

    def forward(self, x):
        return self.norm(self.way(self.layer(x)))


@pytest.mark.parametrize(
    "way",
    [
        lambda y: y.flatten(0, 1),
        lambda y: y.transpose(1, 2),
        lambda y: y.transpose(1, 2).contiguous(),
        lambda y: y.mT.reshape(2, 6, 5, 1).squeeze(-1),
        lambda y: y.mT[..., :-1],
        lambda y: y.unflatten(1, (1, 5)).flatten(0, 2),
    ],
)
def test_a_linear_layer_folds_through_any_view(way):
    model = randomize_(Through(nn.Linear(4, 6), nn.BatchNorm1d(6), way)).double().eval()
    check_folded(model, drawn(2, 5, 4))


def test_features_that_become_pictures_fold_with_their_channel():
    model = Through(nn.Linear(4, 6 * 3 * 2), nn.BatchNorm2d(6), lambda y: y.view(-1, 6, 3, 2))
    check_folded(randomize_(model).double().eval(), drawn(5, 4))


def test_shuffled_channels_fold_with_their_own():
    model = Through(nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y.view(-1, 2, 3).mT.reshape(-1, 6))
    check_folded(randomize_(model).double().eval(), drawn(5, 4))


def test_order_of_registration_does_not_matter():
    class Backwards(nn.Module):
        """Registered as conv a, norm b, conv b, norm a; run as conv a, norm a, conv b, norm b."""

        def __init__(self):
            super().__init__()
            self.conv_a, self.norm_b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.conv_b, self.norm_a = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm_b(self.conv_b(self.norm_a(self.conv_a(x)).relu_())).relu()

    change = check_folded(randomize_(Backwards()).double().eval(), drawn(2, 4, 7, 7), norms=2)
    assert "folded into 'conv_b'" in str(change.changed[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_weights_are_rounded_once(dtype, tolerance):
    model = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), dtype=dtype)
    conv, norm = copy.deepcopy(model).double()
    fold_(model, drawn(2, 4, 5, 5, dtype=dtype))
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    exact = conv.weight * gain.view(-1, 1, 1, 1)
    assert model[0].weight.dtype == dtype
    assert torch.equal(model[0].weight, exact.to(dtype))
    x = drawn(2, 4, 5, 5, dtype=dtype)
    expected = norm(conv(x.double()))
    assert (model(x) - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_new_bias_is_a_parameter_like_the_weight():
    model = sequence(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)).requires_grad_(False)
    fold_(model, drawn(2, 4, 5, 5))
    bias = model[0].bias
    assert isinstance(bias, nn.Parameter) and not bias.requires_grad and bias.dtype == torch.float64
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]


def test_undo_restores_modules_and_numbers():
    model = sequence(nn.Conv2d(4, 6, 3, bias=False), steadynorm.BatchNorm2d(6, activation="relu"))
    before, norm = copy.deepcopy(model.state_dict()), model[1]
    change = fold_(model, drawn(2, 4, 5, 5))
    assert change.undo() is model
    assert model[1] is norm and model[0].bias is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Sometimes(nn.Module):
    """Gives the right numbers twice, and others from the third run on."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.runs = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), 0

    def forward(self, x):
        self.runs += 1
        return {"logits": self.norm(self.conv(x)) * (1.01 if self.runs == 3 else 1)}


def test_outputs_that_differ_put_everything_back():
    model = randomize_(Sometimes()).double().eval()
    before, norm = copy.deepcopy(model.state_dict()), model.norm
    with pytest.raises(RuntimeError, match=r"1\.0e-10.*the output\['logits'\].*off by 1\.0e-02.*put back"):
        fold_(model, drawn(2, 4, 5, 5))
    assert model.norm is norm
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_larger_tolerance_is_the_users_to_give():
    change = fold_(randomize_(Sometimes()).double().eval(), drawn(2, 4, 5, 5), tolerance=0.02)
    assert change.measured["largest_relative_error"] == pytest.approx(0.01, rel=1e-3)
    assert "largest relative error" in str(change)


def test_weights_that_autocast_has_cast_before_are_not_used_again():
    model = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), dtype=torch.float32)
    x = drawn(2, 4, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        model[0](x)  # with gradient: the cast of the weight is kept
        fold_(model, x)
        assert isinstance(model[1], nn.Identity)


def test_a_nearly_constant_channel_is_named():
    model = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    model[1].running_var[3], model[1].weight.data[3] = 0.0, 1.0
    change = fold_(model, drawn(2, 4, 5, 5))
    assert "note: largest gain 316, of channel 3: nearly constant in training" in str(change)


def test_where_chooses_among_the_norms():
    model = sequence(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    change = check_folded(model, drawn(2, 4, 5, 5), where=lambda name, module: name == "3")
    assert [each.name for each in change.changed] == ["3"]
    assert isinstance(model[1], nn.BatchNorm2d)


def test_a_norm_in_two_places_of_the_tree_is_replaced_in_both():
    model = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    model.also = nn.ModuleList([model[1]])
    model.forward = lambda x: model[1](model[0](x))
    fold_(model, drawn(2, 4, 5, 5))
    assert model[1] is model.also[0]
    assert isinstance(model[1], nn.Identity)


@pytest.mark.parametrize("part", [None, 1])
def test_training_mode_is_an_error(part):
    model = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    (model if part is None else model[part]).train()
    with pytest.raises(ValueError, match=r"evaluation mode, got.*Call model\.eval"):
        fold_(model, drawn(2, 4, 5, 5))


def test_a_wrapped_model_is_an_error():
    with pytest.raises(TypeError, match="fold_: modules must be exchanged before"):
        fold_(nn.DataParallel(nn.BatchNorm1d(3)).eval(), drawn(2, 3))


def test_gradients_of_the_input_stay():
    model = sequence(nn.Conv2d(4, 6, 3), steadynorm.BatchNorm2d(6, activation="silu"))
    oracle, x, upstream = copy.deepcopy(model), drawn(2, 4, 5, 5).requires_grad_(), drawn(2, 6, 3, 3, seed=5)
    fold_(model, x)
    (expected,), (actual,) = (torch.autograd.grad(each(x), x, upstream) for each in (oracle, model))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
