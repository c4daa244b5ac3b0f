"""The compared providers: layers on the inputs of a case, networks on images; each a function with marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.bench.cases import Case
from steadynorm.bench.timing import Mark, Provider
from steadynorm.lab.machine import Precision
from steadynorm.lab.networks import build_network as build_lab_network
from steadynorm.layers import BatchNorm2d

__all__ = [
    "Inputs",
    "build_network",
    "copy",
    "draw_images",
    "forward_backward",
    "inference",
    "make_inputs",
    "our_module",
    "prepared",
    "torch_module",
    "train_step",
]

PARAMETERS = {"weight": (1.0, 0.3), "bias": (0.0, 0.3)}
ESTIMATES = {"running_mean": (0.3, 0.1), "running_var": (4.0, 0.3)}
"""Means and standard deviations."""

DEPTH, WIDTHS, CLASSES = 6, (32, 64, 128), 10  # of the cnn, as compare has them
LEARNING_RATE = 1e-4  # small, so that steps on noise stay finite; infinities take another time
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """One set of tensors, all of x's shape, dtype and layout."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    spare: Tensor
    """Target of a copy."""

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Arguments of a module."""
        return (self.x,) if self.residual is None else (self.x, self.residual)


class _TorchNorm(nn.Module):
    """Batch norm as people write it around torch's layer: in place wherever autograd allows."""

    def __init__(self, norm: nn.Module, *, relu: bool) -> None:
        super().__init__()
        self.norm = norm
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add, rectify."""
        y = self.norm(x)
        if residual is not None:
            y += residual
        rectified: Tensor = self.relu(y)
        return rectified


def make_inputs(case: Case, device: torch.device, *, cache_bytes: int = 0) -> list[Inputs]:
    """Draw one set of tensors and lay it out in memory so many times that their x together are larger than a cache.

    The gradient leans towards x, so that no channel's sums cancel to a value that is all rounding.
    """
    generator = torch.Generator(device).manual_seed(sum(case.shape))
    memory_format = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format

    def normal() -> Tensor:
        drawn = torch.randn(case.shape, generator=generator, device=device)
        return drawn.to(case.torch_dtype).contiguous(memory_format=memory_format)

    standard = normal()
    x = standard * 2 + 0.3
    dy = normal().add_(standard, alpha=0.5).add_(0.5)
    residual = normal() if case.op == "norm_relu_residual" else None
    return [
        Inputs(
            x=x.clone().requires_grad_(),
            dy=dy.clone(),
            residual=None if residual is None else residual.clone().requires_grad_(),
            spare=torch.zeros_like(x),
        )
        for _ in range(1 + cache_bytes // case.x_bytes)
    ]


def torch_module(case: Case) -> nn.Module:
    """Build torch's layers for a case."""
    return _TorchNorm(nn.BatchNorm2d(case.shape[1]), relu=case.op != "norm")


def our_module(case: Case) -> nn.Module:
    """Build our layer for a case."""
    return BatchNorm2d(case.shape[1], activation="relu" if case.op != "norm" else None)


def prepared(module: nn.Module, device: torch.device, *, estimates: bool = False) -> nn.Module:
    """Set random float32 parameters, the same for every module with as many channels, and put the module into training.

    Args:
        module: changed.
        device: device it moves to.
        estimates: whether its running statistics become random too, near those of the inputs.
    """
    numbers = PARAMETERS | (ESTIMATES if estimates else {})
    tensors = {path.rpartition(".")[2]: tensor for path, tensor in module.state_dict().items()}
    generator = torch.Generator().manual_seed(tensors["weight"].numel())
    for name, (mean, std) in numbers.items():
        tensors[name].normal_(mean, std, generator=generator)
    return module.to(device).train()


def forward_backward(module: nn.Module, feed: Iterator[Inputs]) -> Provider:
    """Return a module's share of a training step; what comes before and after the marks is not timed.

    Args:
        module: in training mode.
        feed: yields the inputs of each call, those used longest ago.
    """

    def call(mark: Mark) -> None:
        inputs = next(feed)
        mark()
        y = module(*inputs.given)
        mark()
        y.backward(inputs.dy)
        mark()
        for tensor in (*inputs.given, *module.parameters()):
            tensor.grad = None

    return call


def copy(feed: Iterator[Inputs]) -> Provider:
    """Return a function that copies x: the measure of memory speed."""

    def call(mark: Mark) -> None:
        inputs = next(feed)
        mark()
        with torch.no_grad():
            inputs.spare.copy_(inputs.x)
        mark()

    return call


def build_network(name: str, norm: str, device: torch.device) -> nn.Module:
    """Build a network of the lab in training mode and channels-last, with the weights of seed 0."""
    model = build_lab_network(name, arm=norm, depth=DEPTH, widths=WIDTHS, classes=CLASSES, seed=0)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.train()


def draw_images(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw images of noise and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return x.to(device), torch.randint(CLASSES, (count,), generator=generator).to(device)


def train_step(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    precision: Precision,
    between: Callable[[nn.Module], None] = lambda model: None,
) -> Provider:
    """Return one step as the lab trains: bf16 by autocast, SGD with momentum and weight decay.

    Args:
        model: in training mode.
        x: images.
        labels: their labels.
        precision: precision of forward and backward.
        between: called with the gradients before the optimizer uses them.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def call(mark: Mark) -> None:
        mark()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        between(model)
        optimizer.step()
        mark()

    return call


def inference(model: nn.Module, x: Tensor, precision: Precision) -> Provider:
    """Return one forward of a network in evaluation."""

    def call(mark: Mark) -> None:
        mark()
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            model(x)
        mark()

    return call
