"""How results and gradients lie in memory: as those of torch's own layer, whatever the strides of the input."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import steadynorm
from steadynorm import backend, layers
from tests.support.family import MEMBERS

SHAPES = [
    (6, 4),
    (6, 4, 5),
    (6, 1, 5),
    (0, 4, 3, 5),
    (6, 4, 3, 5),
    (1, 4, 3, 5),
    (6, 1, 3, 5),
    (6, 4, 1, 1),
    (6, 4, 2, 3, 5),
]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture
def each_backend():
    """The tests here say themselves what they run with."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layouts(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Inputs of that shape in every order of the dimensions that people have, with gaps and with overlaps."""
    x, dims = drawn(*shape), range(len(shape))
    yield x
    yield drawn(*shape[::-1]).permute(*reversed(dims))
    yield drawn(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield drawn(2 * shape[0], *shape[1:])[::2]
    yield drawn(*shape[:-1], 2 * shape[-1])[..., ::2]
    yield drawn(shape[0], 1, *shape[2:]).expand(shape)
    yield drawn(1, *shape[1:]).expand(shape)
    if len(shape) > 2:
        yield drawn(*shape[:2], *[1] * len(shape[2:])).expand(shape)
    if len(shape) in LAST:
        last = LAST[len(shape)]
        yield x.contiguous(memory_format=last)
        yield drawn(2 * shape[0], *shape[1:]).contiguous(memory_format=last)[::2]
        yield drawn(shape[0], 2 * shape[1], *shape[2:]).contiguous(memory_format=last)[:, : shape[1]]
        yield drawn(*shape[:-1], 2 * shape[-1]).contiguous(memory_format=last)[..., ::2]


def every_input() -> Iterator[Tensor]:
    for shape in SHAPES:
        yield from layouts(shape)


def strides(layer: nn.Module, x: Tensor) -> tuple[tuple[int, ...], list[int]]:
    """Of the result; and of the gradient, where a stride says anything."""
    x = x.detach().requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones(y.shape))
    return y.stride(), [stride for stride, size in zip(dx.stride(), dx.shape, strict=True) if size > 1]


def torchs(x: Tensor) -> nn.Module:
    return getattr(nn, f"BatchNorm{max(x.dim(), 3) - 2}d")(x.shape[1])


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("chosen", ["reference", "auto", "numba"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_results_and_gradients_lie_as_torchs_do(name, chosen, training):
    for x in every_input():
        ours = getattr(layers, f"{name}{max(x.dim(), 3) - 2}d")(x.shape[1], **MEMBERS[name])
        expected = strides(torchs(x).train(training and name != "FrozenBatchNorm"), x)
        with backend(chosen):
            found = strides(ours.train(training), x)
        assert found == expected, (x.shape, x.stride())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_masked_result_lies_as_torchs_does(training):
    for shape in [(6, 4), (6, 4, 5)]:
        for x in layouts(shape):
            mask = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
            y = layers.MaskedBatchNorm1d(4).train(training)(x, mask)
            assert y.stride() == torchs(x).train(training)(x).stride(), x.stride()


def test_small_batches_of_the_gate_lie_as_torchs_do():
    for x in layouts((6, 4, 3, 5)):
        layer = layers.GatedBatchNorm2d(4, small_batch_probability=1.0)
        assert layer(x).stride() == torchs(x)(x).stride(), x.stride()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["BatchNorm", "GatedBatchNorm"])
@pytest.mark.parametrize("how", ["compiled", "exported"])
def test_compiled_and_exported_results_lie_as_torchs_do(name, how):
    for x in (drawn(6, 3, 5, 4).movedim(-1, 1), drawn(6, 5, 4).transpose(1, 2)):
        layer = getattr(layers, f"{name}{x.dim() - 2}d")(4, **MEMBERS[name])
        torch._dynamo.reset()
        run = (
            torch.compile(layer, backend="aot_eager", fullgraph=True)
            if how == "compiled"
            else torch.export.export(layer, (x,)).module()
        )
        assert run(x).stride() == torchs(x)(x).stride(), x.stride()
    torch._dynamo.reset()


def test_a_view_of_a_large_transposed_batch_is_possible_behind_the_layer():
    x = drawn(64, 512, 64).transpose(1, 2)
    assert steadynorm.BatchNorm1d(64)(x).view(-1).shape == (64 * 512 * 64,)
