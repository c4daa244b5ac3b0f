"""Ghost batch norm against torch's batch norm of every chunk by itself."""

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.rules import chunk_count
from steadynorm.rules.ghost_batch_norm import chunk_of_each
from tests.support.family import build, torchs
from tests.support.layers import drawn, each_shape


def by_chunks(native, x, residual, chunks):
    return (torch.cat([native(part) for part in x.tensor_split(chunks)]) + residual).relu()


def outcome(y, inputs, dy):
    return [y, *torch.autograd.grad(y, inputs, dy)]


@each_shape
@pytest.mark.parametrize("samples", [4, 5, 7])
@pytest.mark.parametrize("ghost_batch_size", [2, 3])
def test_result_and_gradients_are_those_of_chunks_by_themselves(shape, samples, ghost_batch_size):
    shape = (samples, *shape[1:])
    ours = build("GhostBatchNorm", len(shape), ghost_batch_size=ghost_batch_size, activation="relu")
    native = torchs(len(shape))
    chunks = chunk_count(samples, torch.Size(shape[2:]).numel(), ghost_batch_size)
    x, residual = drawn(*shape, seed=1).requires_grad_(), drawn(*shape, seed=2).requires_grad_()
    expected = outcome(by_chunks(native, x, residual, chunks), [x, residual, *native.parameters()], drawn(*shape))
    actual = outcome(ours(x, residual), [x, residual, *ours.parameters()], drawn(*shape))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@each_shape
def test_from_the_batch_size_on_it_is_batch_norm(shape):
    ours, native = build("GhostBatchNorm", len(shape), ghost_batch_size=shape[0]), torchs(len(shape))
    for seed in range(3):
        x = drawn(*shape, seed=seed)
        torch.testing.assert_close(ours(x), native(x), rtol=1e-12, atol=1e-12)
    for name, value in native.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize(
    ("samples", "values", "ghost_batch_size", "sizes"),
    [
        (128, 4, 32, [32] * 4),
        (100, 4, 32, [25] * 4),
        (33, 4, 32, [17, 16]),
        (32, 4, 32, [32]),
        (5, 4, 1, [1] * 5),
        (5, 1, 2, [3, 2]),
        (5, 1, 1, [3, 2]),
        (2, 1, 1, [2]),
    ],
)
def test_chunks_differ_by_one_sample_and_have_two_values_at_least(samples, values, ghost_batch_size, sizes):
    chunks = chunk_count(samples, values, ghost_batch_size)
    assert [len(part) for part in torch.empty(samples).tensor_split(chunks)] == sizes


# Large enough to be compiled kernels' own on a CPU.
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_large_tensors_are_normalized_where_they_lie(memory_format, with_residual, activation):
    shape = (70, 16, 32, 32)
    ours = steadynorm.GhostBatchNorm2d(16, ghost_batch_size=32, activation=activation)
    native = nn.BatchNorm2d(16)
    for layer in (ours, native):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    found = []
    for layer in (ours, native):
        x, residual, dy = (
            drawn(*shape, seed=seed, dtype=torch.float32).contiguous(memory_format=memory_format) for seed in range(3)
        )
        x.requires_grad_(), residual.requires_grad_()
        added = residual if with_residual else None
        if layer is ours:
            y = layer(x, added)
        else:
            y = torch.cat([native(part) for part in x.tensor_split(3)])
            y = y if added is None else y + added
            y = y if activation is None else y.relu()
        wanted = [x, *layer.parameters()] + [residual] * with_residual
        found.append([y, *torch.autograd.grad(y, wanted, dy)])
    assert found[0][0].is_contiguous(memory_format=memory_format)
    assert found[0][1].is_contiguous(memory_format=memory_format)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_large_tensors_are_differentiable_twice():
    layer, native = steadynorm.GhostBatchNorm2d(16, ghost_batch_size=4), nn.BatchNorm2d(16)
    found = []
    for run in (layer, lambda x: torch.cat([native(part) for part in x.tensor_split(2)])):
        x = drawn(8, 16, 32, 32, dtype=torch.float32).requires_grad_()
        (first,) = torch.autograd.grad(run(x).pow(3), x, torch.ones_like(x), create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((first, second))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_samples_that_do_not_lie_one_behind_the_other_are_read_right():
    layer = steadynorm.GhostBatchNorm2d(16, ghost_batch_size=32)
    x = drawn(16, 70, 32, 32, dtype=torch.float32).transpose(0, 1)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("size", [0, 2.5, "4", None])
def test_a_chunk_of_no_number_of_samples_is_refused(size):
    message = f"GhostBatchNorm2d: ghost_batch_size counts samples, a whole number of at least 1, got {size!r}"
    with pytest.raises(ValueError, match=message):
        steadynorm.GhostBatchNorm2d(3, ghost_batch_size=size)


def test_one_value_per_channel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got 1"):
        steadynorm.GhostBatchNorm1d(3, ghost_batch_size=2)(torch.ones(1, 3))


@pytest.mark.parametrize("values", [1, 4])
@pytest.mark.parametrize("ghost_batch_size", [1, 2, 3, 32])
def test_a_record_cuts_the_chunks_that_the_layer_does(values, ghost_batch_size):
    for samples in range(1, 70):
        chunks = chunk_count(samples, values, ghost_batch_size)
        expected = [chunk for chunk, part in enumerate(torch.arange(samples).tensor_split(chunks)) for _ in part]
        assert chunk_of_each(samples, values, ghost_batch_size, torch.device("cpu")).tolist() == expected, samples
