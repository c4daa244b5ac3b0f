"""The network that a fault is put into, and the case that the doctor diagnoses."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor.training import Data

__all__ = [
    "Case",
    "Norm",
    "Subject",
    "WithTarget",
    "alike",
    "fed_by",
    "last_linear",
    "norms_of",
    "put",
    "shapes_of",
    "that_keep_the_shape",
]

Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A healthy network that a fault changes.

    Args:
        model: in evaluation.
        data: of its training.
        draw: chooses layers and channels.
        rate: learning rate of its training.
    """

    model: nn.Module
    data: Data
    draw: random.Random
    rate: float

    def one_norm(self) -> tuple[str, Norm]:
        """Choose a layer."""
        return self.draw.choice(norms_of(self.model))

    def follow_(self, batches: list[Tensor]) -> None:
        """Update the statistics on batches, in training mode and without gradient."""
        self.model.train()
        with torch.no_grad():
            for x in batches:
                self.model(x)
        self.model.eval()

    def inputs(self, size: int, number: int) -> list[Tensor]:
        """Return training batches without labels."""
        x = self.data.train[0]
        rows = torch.tensor([self.draw.randrange(len(x)) for _ in range(size * number)])
        return list(x[rows].split(size))

    def labelled(self, size: int, number: int) -> list[tuple[Tensor, Tensor]]:
        """Return training batches."""
        x, labels = self.data.train
        rows = torch.tensor([self.draw.randrange(len(x)) for _ in range(size * number)])
        return list(zip(x[rows].split(size), labels[rows].split(size), strict=True))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case for the doctor.

    Args:
        model: in the mode in which it is used.
        batches: as :func:`steadynorm.diagnose` takes them; None for a diagnosis without batches.
        options: of ``diagnose``.
        layers: the layers with the fault; None if it is in the whole model.
        feed: what is done to inputs before the model gets them, where that is the fault; done to the batches already.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: frozenset[str] | None = None
    feed: Callable[[Tensor], Tensor] | None = None


class WithTarget(nn.Module):
    """A network in use, and a target network that follows it."""

    def __init__(self, online: nn.Module, target: nn.Module) -> None:
        super().__init__()
        self.online, self.target = online, target

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the network in use."""
        logits: Tensor = self.online(x)
        return logits


def norms_of(model: nn.Module) -> list[tuple[str, Norm]]:
    """List the batch norms by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Norm)]


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the classifier by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def alike(model: nn.Module) -> list[tuple[tuple[str, Norm], tuple[str, Norm]]]:
    """Pair layers of one class and size."""
    pairs = itertools.combinations(norms_of(model), 2)
    return [(a, b) for a, b in pairs if type(a[1]) is type(b[1]) and a[1].num_features == b[1].num_features]


def fed_by(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Pair layers and norms by name if the norm's input is exactly the layer's output."""
    given: dict[int, tuple[str, Tensor]] = {}
    found: list[tuple[str, str]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, Norm):
                if id(inputs[0]) in given:
                    found.append((given[id(inputs[0])][0], name))
            else:
                given[id(output)] = (name, output)  # held, so that no other tensor gets its id

        return look

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
    hooks = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if isinstance(module, kinds)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def shapes_of(model: nn.Module, x: Tensor) -> dict[str, torch.Size]:
    """Return the shape of each norm's input at its first call, for the inputs ``x``."""
    shapes: dict[str, torch.Size] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes.setdefault(name, inputs[0].shape)

        return look

    hooks = [norm.register_forward_pre_hook(watch(name)) for name, norm in norms_of(model)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return shapes


def that_keep_the_shape(model: nn.Module, x: Tensor, names: Iterable[str]) -> list[str]:
    """List the parts with one input and one output of the same shape in each of their calls."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if len(inputs) == 1 and isinstance(output, Tensor) and inputs[0].shape == output.shape:
                found.append(name)

        return look

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a module."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
