"""Conversion to a class that surgery does not know: one of the user's, or another of torch's."""

import pytest
import torch
from torch import Tensor, nn

import steadynorm
from steadynorm.layers import NormAddActivation
from steadynorm.surgery import convert_, freeze_
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, snapshot


class Rms(nn.Module):
    """x / rms(x) · weight, over channels."""

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt() * self.weight.view(shape)


def test_every_batch_norm_becomes_one_with_the_parameters_that_fit():
    model = mixed().train()
    weights, trained = [model[place].weight for place in (1, 4, 8)], model[4].activation
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    change = convert_(model, Rms, eps=0.25)
    assert len(change.changed) == 3 and not change.refused
    norms = [module for module in model.modules() if isinstance(module, Rms)]
    assert [norm.eps for norm in norms] == [0.25] * 3
    assert all(norm.weight is weight for norm, weight in zip(norms, weights, strict=True))
    assert isinstance(model[4], NormAddActivation) and trained == "relu", "what was fused stands after it"
    assert [norm.training for norm in norms] == [False, True, True]
    before = weights[0].clone()
    model(MIXED_INPUT).square().sum().backward()
    optimizer.step()
    assert not torch.equal(norms[0].weight, before)


def test_it_computes_what_the_class_computes():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 4, 4)
    convert_(model, Rms)
    torch.testing.assert_close(model(x), (x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()).relu())


def test_undo_is_bit_for_bit():
    model = mixed()
    before, y = snapshot(model), model(MIXED_INPUT)
    change = convert_(model, Rms)
    assert not torch.equal(model(MIXED_INPUT), y)
    change.undo()
    assert_state_equal(model, before)
    assert torch.equal(model(MIXED_INPUT), y)


def test_hooks_dtype_and_the_root_go_along():
    norm, seen = nn.BatchNorm2d(3).double(), []
    norm.register_forward_hook(lambda module, x, y: seen.append(type(module)))
    model = convert_(norm, Rms).model
    assert model.weight.dtype == torch.float64
    model(torch.randn(2, 3, 4, 4).double())
    assert seen == [Rms]


def test_a_class_without_weight_or_with_others_says_what_is_lost():
    change = convert_(nn.Sequential(nn.BatchNorm2d(3)), nn.InstanceNorm2d)
    assert str(change.changed[0]).splitlines() == [
        "0: torch.nn.BatchNorm2d(3) -> torch.nn.InstanceNorm2d(3)",
        "    note: weight, bias and running statistics are dropped: it has none of these names and shapes",
    ]
    change = convert_(nn.Sequential(nn.BatchNorm2d(3)), nn.InstanceNorm2d, affine=True, track_running_stats=True)
    assert change.changed[0].notes == ()
    assert change.changed[0].after == "torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True)"


def test_a_function_of_the_channels_serves_as_well():
    model = nn.Sequential(nn.BatchNorm2d(8))
    convert_(model, lambda channels: nn.GroupNorm(channels // 4, channels))
    assert (model[0].num_groups, model[0].num_channels) == (2, 8)


def test_what_it_raises_is_said_with_the_call_and_the_model_stays():
    model = mixed()
    before = snapshot(model)
    with pytest.raises(
        TypeError, match=r"convert_: Rms\(32, epsilon=1\) must return a layer, but it raised TypeError: .*epsilon"
    ):
        convert_(model, Rms, epsilon=1)
    with pytest.raises(
        TypeError, match=r"convert_: Linear\(32\) must return a layer, but it raised TypeError: .*out_features"
    ):
        convert_(model, nn.Linear)
    with pytest.raises(TypeError, match=r"convert_: int\(32\) must return a layer, but it returned int"):
        convert_(model, int)
    assert_state_equal(model, before)


def test_batches_are_for_group_norm():
    with pytest.raises(ValueError, match="batches fit group or layer norm; Rms"):
        convert_(mixed(), Rms, batches=[MIXED_INPUT])


def test_a_frozen_layer_stays_frozen_in_its_parameters():
    model = nn.Sequential(nn.BatchNorm2d(3))
    freeze_(model)
    convert_(model, Rms)
    assert not model[0].weight.requires_grad


def test_where_chooses():
    model = nn.Sequential(nn.BatchNorm2d(3), steadynorm.BatchNorm2d(3))
    convert_(model, Rms, where=lambda name, module: name == "1")
    assert isinstance(model[0], nn.BatchNorm2d) and isinstance(model[1], Rms)
