"""Batch norms folded into the layer after, against the model as it was, in float64."""

import copy
import re

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery.flow.channel_pad import ChannelPad
from steadynorm.surgery.fold import fold_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import refusals


def sequence(*modules):
    """A model in which nothing is before the first module but an activation."""
    return randomize_(nn.Sequential(nn.Tanh(), *modules)).double().eval()


def check_folded(model, x, *, norms=1):
    oracle = copy.deepcopy(model)
    change = fold_(model, x)
    assert len(change.changed) == norms
    assert not change.refused
    torch.testing.assert_close(model(x), oracle(x), rtol=1e-11, atol=1e-11)
    return change


BEHIND = [
    (nn.BatchNorm1d, nn.Conv1d(4, 6, 3), (2, 4, 7)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 7, 5)),
    (nn.BatchNorm3d, nn.Conv3d(4, 6, 2), (2, 4, 3, 4, 5)),
    (nn.BatchNorm1d, nn.Linear(4, 6), (5, 4)),
    (nn.BatchNorm1d, nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, 3, padding=(2, 1), groups=2), (2, 4, 7, 5)),
    (nn.BatchNorm2d, nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2), (2, 4, 7, 5)),
    (nn.BatchNorm3d, nn.Conv3d(4, 6, 2, padding=(0, 1, 2)), (2, 4, 3, 4, 5)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(3, 1)), (2, 4, 7, 5)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 5)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 5)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (2, 4, 7, 5)),
    (nn.BatchNorm2d, nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 7, 5)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of the layer with an even kernel
@pytest.mark.parametrize(("norm", "layer", "shape"), BEHIND, ids=lambda each: getattr(each, "__name__", None))
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_every_layer_takes_the_norm_before_it(norm, layer, shape, affine, bias):
    layer = copy.deepcopy(layer)
    if not bias:
        layer.bias = None
    model = sequence(norm(4, affine=affine), layer)
    pads = getattr(layer, "padding_mode", "") == "zeros" and layer.padding not in ("valid", (0,) * (len(shape) - 2))
    weight = layer.weight
    check_folded(model, drawn(*shape))
    assert type(model[1]) is (ChannelPad if pads else nn.Identity)
    assert layer.weight is weight


def test_a_preactivation_block_folds_by_data_flow():
    class Block(nn.Module):
        """bn -> conv, registered so that a folder by order pairs the conv with the bn before it."""

        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.second(self.norm(self.first(x).relu()))

    change = check_folded(randomize_(Block()).double().eval(), drawn(2, 4, 6, 6))
    assert "folded into 'second'" in str(change)


def test_the_layer_before_is_preferred():
    model = sequence(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    change = check_folded(model, drawn(2, 4, 7, 7))
    assert "folded into '1'" in str(change)


def test_one_layer_takes_a_norm_on_either_side():
    model = sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
    check_folded(model, drawn(2, 4, 7, 7), norms=2)
    assert [type(module) for module in model[1:]] == [ChannelPad, nn.Conv2d, nn.Identity]


def test_features_of_pictures_are_folded_with_their_channel():
    model = sequence(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 3 * 2, 5))
    check_folded(model, drawn(2, 4, 3, 2))


def test_a_linear_layer_takes_a_norm_through_a_transposition():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 6)

        def forward(self, x):
            return self.linear(self.norm(x.sin()).mT)

    check_folded(randomize_(Transposed()).double().eval(), drawn(2, 4, 5))


def test_undo_restores_the_padding():
    model = sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))
    x = drawn(2, 4, 7, 7)
    before, norm = model(x), model[1]
    change = fold_(model, x)
    assert model[2].padding == (0, 0)
    change.undo()
    assert model[2].padding == (1, 1) and model[1] is norm
    assert torch.equal(model(x), before)


def refusal(model, x):
    (refused,) = refusals(fold_, model, x)
    return refused.why


def test_channels_that_nothing_makes_zero_are_refused_where_there_is_padding():
    model = sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))
    model[1].weight.data[1:3] = 0
    assert "in 2 channels no value maps to zero" in refusal(model, drawn(2, 4, 7, 7))


def test_dead_channels_without_shift_or_without_padding_fold():
    model = sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))
    model[1].weight.data[1] = model[1].bias.data[1] = 0
    check_folded(model, drawn(2, 4, 7, 7))
    model = sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))
    model[1].weight.data[1] = 0
    check_folded(model, drawn(2, 4, 7, 7))


def test_a_transposed_convolution_behind_is_refused():
    model = sequence(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3))
    assert "'2' is transposed" in refusal(model, drawn(2, 4, 7, 7))


def test_padding_of_another_view_is_refused():
    model = sequence(nn.BatchNorm1d(4), nn.Unflatten(2, (1, 7)), nn.Conv2d(4, 6, (1, 3), padding=(0, 1)))
    assert "another view than the norm's own output" in refusal(model, drawn(2, 4, 7))


def test_an_activation_between_is_refused():
    model = sequence(steadynorm.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 6, 3))
    assert "a residual or an activation comes between" in refusal(model, drawn(2, 4, 7, 7))


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (lambda y, conv: conv(y) + y, "what it gives is also used by aten.add"),
        (lambda y, conv: conv(y.relu()), "goes to aten.relu, not to a convolution"),
        (lambda y, conv: conv(y) + conv(y), "what it gives is also used by aten.convolution in 'conv'"),
        (lambda y, conv: conv(y) + conv(y.sin()), "what it gives is also used by aten.sin"),
        (lambda y, conv: [conv(y), y], r"what it gives is also used by the output\[1\]"),
        (lambda y, conv: y, "goes to the output, not to a convolution"),
        (lambda y, conv: conv(y.sum()[None, None, None, None].expand(2, 4, 7, 7)), "goes to aten.sum"),
        (lambda y, conv: (conv(y), conv(y.new_ones(2, 4, 7, 7)))[0], "'conv' is called 2 times"),
        (lambda y, conv: conv(y.transpose(1, 2)[:, :4]), "its channels are not those of 'conv'"),
    ],
)
def test_an_output_that_is_not_the_layers_alone_is_refused(after, why):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return after(self.norm(x), self.conv)

    assert re.search(why, refusal(randomize_(Model()).double().eval(), drawn(2, 4, 7, 7)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channel_pad_keeps_dtype_and_memory_format(memory_format):
    x = torch.randn(2, 4, 3, 5).half().contiguous(memory_format=memory_format)
    value = torch.arange(4.0)
    y = ChannelPad(value, [1, 2, 0, 3])(x)
    assert y.dtype == torch.float16 and y.is_contiguous(memory_format=memory_format)
    expected = value.half().view(1, 4, 1, 1).expand(2, 4, 6, 8).clone()
    expected[:, :, :3, 1:6] = x
    assert torch.equal(y, expected)


def test_channel_pad_passes_gradients_to_its_input_alone():
    x = drawn(2, 4, 3).requires_grad_()
    upstream = drawn(2, 4, 6, seed=1)
    (found,) = torch.autograd.grad(ChannelPad(torch.ones(4), [1, 2])(x), x, upstream)
    assert torch.equal(found, upstream[..., 1:4])
