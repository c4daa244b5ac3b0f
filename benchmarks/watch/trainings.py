"""Healthy trainings of many kinds: any event of a watch in them is a false alarm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.architectures.registry import conv
from benchmarks.doctor.training import Data, data_of
from steadynorm.lab.data.digits import make_digits

__all__ = ["HEALTHY", "Batch", "Source", "Training", "batches_of", "data_from", "mirrored", "plain_net"]

Batch = tuple[Tensor, Tensor]
Source = Literal["images", "small images", "signals", "digits"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, up to its seed.

    Args:
        name: in tables.
        source: of its data.
        build: makes an untrained network.
        steps: of the optimizer.
        batch: samples in a batch.
        rate: largest learning rate.
        schedule: share of the steps done -> share of the rate.
        adam: whether AdamW takes the steps; else SGD with momentum 0.9.
        augment: changes inputs, with a generator.
        momentum: of the norms; None leaves them torch's 0.1.
        accumulate: batches whose gradients a step adds up.
        precision: of the forward.
    """

    name: str
    source: Source
    build: Callable[[], nn.Module]
    steps: int
    batch: int = 32
    rate: float = 0.05
    schedule: Callable[[float], float] = lambda share: 1.0
    adam: bool = False
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    momentum: float | None = None
    accumulate: int = 1
    precision: torch.dtype = torch.float32

    def make(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Build the network and its optimizer."""
        torch.manual_seed(seed)
        model = self.build().train()
        if self.momentum is not None:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.momentum = self.momentum
        if self.adam:
            return model, torch.optim.AdamW(model.parameters(), self.rate, weight_decay=0.05)
        return model, torch.optim.SGD(model.parameters(), self.rate, momentum=0.9, weight_decay=5e-4)


def data_from(source: Source, folder: Path | None) -> Data:
    """Return the data of a training.

    Args:
        source: small images are CIFAR-10's at 16×16.
        folder: of CIFAR-10; without it the Hugging Face hub's is taken.
    """
    if source == "digits":
        return _digits()
    data = data_of("signals" if source == "signals" else "images", folder)
    if source != "small images":
        return data
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return Data(**{name: (functional.avg_pool2d(x, 2), labels) for name, (x, labels) in parts.items()})


def _digits() -> Data:
    """Return scikit-learn's handwritten digits, at 14×14: 1,300 to train on."""
    dataset = make_digits()
    parts = []
    for images in (dataset.train, dataset.validation):
        x = images.pixels.float().mean(1, keepdim=True)[..., ::2, ::2] / 255
        parts.append(((x - 0.3) / 0.4, images.labels))
    return Data(train=parts[0], validation=parts[1], test=parts[1])


def drawn(data: Data, size: int, seed: int) -> Iterator[Batch]:
    """Yield endless batches, each epoch in a new order; an incomplete last batch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = data.train
    while True:
        for rows in torch.randperm(len(inputs), generator=generator)[: len(inputs) // size * size].split(size):
            yield inputs[rows], labels[rows]


def batches_of(training: Training, data: Data, seed: int) -> Iterator[Batch]:
    """Yield the training's batches, augmented."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    for x, labels in drawn(data, training.batch, seed):
        yield (x if training.augment is None else training.augment(x, generator)), labels


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images."""
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x, x.flip(3))


def erased(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, change contrast and brightness, and erase a square of each."""
    x = mirrored(x, generator)
    contrast = 0.6 + 0.8 * torch.rand(len(x), 1, 1, 1, generator=generator)
    x = x * contrast + 0.3 * torch.randn(len(x), 1, 1, 1, generator=generator)
    for each in x:
        top, left = (int(torch.randint(0, 20, (), generator=generator)) for _ in range(2))
        each[:, top : top + 12, left : left + 12] = 0
    return x


def cosine(share: float) -> float:
    """Warm up over a twentieth, then fall to 0 along a cosine."""
    return share / 0.05 if share < 0.05 else 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))


def steps_down(share: float) -> float:
    """Divide the rate by ten after half and after three quarters."""
    return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01


def plain_net() -> nn.Module:
    """Build five convolutions with norms for small images."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def small_net() -> nn.Module:
    """Build three convolutions and a linear layer, each with a norm."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
    )


def perceptron() -> nn.Module:
    """Build two hidden layers with norms and dropout."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(196, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)),
    )


HEALTHY = (
    Training(name="digits", source="digits", build=small_net, steps=20_000, rate=0.1, schedule=cosine),
    Training(name="digits, batches of 8", source="digits", build=small_net, steps=20_000, batch=8, rate=0.02),
    Training(name="perceptron", source="digits", build=perceptron, steps=20_000, rate=0.1, schedule=steps_down),
    Training(name="perceptron, AdamW", source="digits", build=perceptron, steps=20_000, batch=16, rate=1e-3, adam=True),
    Training(
        name="plain", source="images", build=ARCHITECTURES["cnn"].build, steps=1_000, augment=mirrored, schedule=cosine
    ),
    Training(
        name="residual, momentum 0.01",
        source="images",
        build=ARCHITECTURES["resnet"].build,
        steps=800,
        rate=0.1,
        augment=erased,
        momentum=0.01,
        schedule=cosine,
    ),
    Training(
        name="residual, accumulated",
        source="images",
        build=ARCHITECTURES["resnet"].build,
        steps=400,
        batch=16,
        accumulate=4,
        augment=mirrored,
    ),
    Training(
        name="depthwise, AdamW, bfloat16",
        source="images",
        build=ARCHITECTURES["mobilenet"].build,
        steps=300,
        rate=2e-3,
        adam=True,
        augment=mirrored,
        precision=torch.bfloat16,
    ),
    Training(
        name="dense", source="images", build=ARCHITECTURES["densenet"].build, steps=600, augment=erased, schedule=cosine
    ),
    Training(name="signals", source="signals", build=ARCHITECTURES["signal"].build, steps=3_000, schedule=steps_down),
)
