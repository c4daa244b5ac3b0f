"""Frozen batch norm against torch's evaluation, in training mode."""

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.ops.reference import ACTIVATIONS
from tests.support.family import build, torchs
from tests.support.layers import drawn, each_shape, randomize_


@each_shape
def test_training_is_torchs_evaluation_and_moves_nothing(shape):
    ours, native = build("FrozenBatchNorm", len(shape)).train(), torchs(len(shape)).eval()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    found = []
    for layer in (ours, native):
        x = drawn(*shape).requires_grad_()
        y = layer(x)
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], drawn(*shape, seed=1))])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name])


# All pairs of an activation, a memory format, frozen or learned parameters, and one or two derivatives.
@pytest.mark.parametrize(
    ("activation", "memory_format", "freeze_affine", "create_graph"),
    [
        (activation, (torch.contiguous_format, torch.channels_last)[rows], bool(rows ^ low), bool(rows ^ high))
        for activation, (low, high) in zip((None, *ACTIVATIONS), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
        for rows in (0, 1)
    ],
)
def test_large_tensors_have_torchs_result_and_gradients(activation, memory_format, freeze_affine, create_graph):
    shape = (70, 16, 32, 32)  # large enough to be compiled kernels' own on a CPU
    ours, native = steadynorm.FrozenBatchNorm2d(16, freeze_affine=freeze_affine), nn.BatchNorm2d(16).eval()
    ours.activation = activation
    with torch.no_grad():
        for layer in (ours, native):
            for name, value in layer.state_dict().items():
                if value.is_floating_point():
                    value.copy_(drawn(16, seed=len(name), dtype=torch.float32).abs() + 0.5)
    found = []
    for layer in (ours, native):
        x, residual, dy = (
            drawn(*shape, seed=seed, dtype=torch.float32).contiguous(memory_format=memory_format) for seed in range(3)
        )
        x.requires_grad_(), residual.requires_grad_()
        y = layer(x, residual) if layer is ours else layer(x) + residual
        if layer is native and activation is not None:
            y = getattr(nn.functional, activation)(y)
        wanted = [x, residual, *([] if freeze_affine else layer.parameters())]
        found.append([y, *torch.autograd.grad(y, wanted, dy, create_graph=create_graph)])
    assert found[0][0].is_contiguous(memory_format=memory_format)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("freeze_affine", [True, False])
def test_weight_and_bias_are_frozen_unless_they_are_to_be_learned(freeze_affine):
    layer = steadynorm.FrozenBatchNorm2d(3, freeze_affine=freeze_affine)
    assert {parameter.requires_grad for parameter in layer.parameters()} == {not freeze_affine}


def test_any_batch_size_trains():
    layer = build("FrozenBatchNorm", 2)
    x = drawn(1, 3).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (layer.weight / (layer.running_var + layer.eps).sqrt()).expand(1, 3))


def test_no_gradient_flows_to_the_statistics():
    layer = steadynorm.FrozenBatchNorm2d(16)
    layer(torch.randn(70, 16, 32, 32, requires_grad=True)).sum().backward()
    assert layer.running_mean.grad is None


def test_without_statistics_there_is_nothing_to_freeze():
    with pytest.raises(ValueError, match="FrozenBatchNorm2d: there must be statistics to freeze"):
        steadynorm.FrozenBatchNorm2d(3, track_running_stats=False)


@pytest.mark.parametrize("training", [False, True])
def test_its_vjp_is_taken_although_its_statistics_are_no_arguments(training):
    norm = randomize_(steadynorm.FrozenBatchNorm1d(3).double()).train(training)
    x, dy = drawn(5, 3), drawn(5, 3, seed=1)
    (dx,) = torch.func.vjp(norm, x)[1](dy)
    expected = dy * (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    torch.testing.assert_close(dx, expected)
