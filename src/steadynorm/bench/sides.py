"""Who is compared on a case: inputs, and each side's module on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steadynorm.bench.cases import Case
from steadynorm.layers import BatchNorm2d

__all__ = ["Inputs", "Mark", "build_modules", "copy_input", "forward_backward", "make_inputs"]

Mark = Callable[[], None]
"""Called where a timed part begins or ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """One set of tensors, all of x's shape, dtype and layout."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    spare: Tensor
    """What a copy writes to."""

    @property
    def given(self) -> tuple[Tensor, ...]:
        """What a module is called with."""
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


def make_inputs(case: Case, device: torch.device, *, sets: int) -> list[Inputs]:
    """Draw one set of tensors and lay it out ``sets`` times in memory.

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
        for _ in range(sets)
    ]


def build_modules(case: Case, device: torch.device, *, compiled: bool) -> dict[str, nn.Module]:
    """Build torch's side, its compiled form where asked for, and ours; all with the same float32 parameters."""
    channels, relu = case.shape[1], case.op != "norm"
    modules: dict[str, nn.Module] = {"torch": _TorchNorm(nn.BatchNorm2d(channels), relu=relu)}
    if compiled:
        modules["compile"] = _TorchNorm(nn.BatchNorm2d(channels), relu=relu)
    modules["ours"] = BatchNorm2d(channels, activation="relu" if relu else None)
    for module in modules.values():
        generator = torch.Generator().manual_seed(channels)
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=1.0, std=0.3, generator=generator)
        module.to(device).train()
    if compiled:
        modules["compile"].compile(dynamic=False)
    return modules


def forward_backward(module: nn.Module, inputs: Inputs, mark: Mark) -> None:
    """Take a module through one training step's share; what goes before and after the marks is not timed."""
    mark()
    y = module(*inputs.given)
    mark()
    y.backward(inputs.dy)
    mark()
    for tensor in (*inputs.given, *module.parameters()):
        tensor.grad = None


def copy_input(inputs: Inputs, mark: Mark) -> None:
    """Read x and write as much: the measure of what memory can do."""
    mark()
    with torch.no_grad():
        inputs.spare.copy_(inputs.x)
    mark()
