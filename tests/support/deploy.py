"""A small trained-looking network, as a checkpoint and in parts."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from steadynorm.lab.networks import build_network
from steadynorm.reporting.run_directory import save_tensors

METADATA = {"arm": "batch_norm", "network": "cnn", "depth": "3", "widths": "4 8"}


def network(arm: str = "batch_norm", *, classes: int = 10) -> nn.Module:
    """A network whose statistics are those of some batches."""
    generator = torch.Generator().manual_seed(3)
    model = build_network("cnn", arm=arm, depth=3, widths=(4, 8), classes=classes, seed=1).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32, generator=generator))
    return model.eval()


def save_checkpoint(path: Path, arm: str = "batch_norm", **changed: str) -> nn.Module:
    """Write a checkpoint as an experiment does."""
    model = network(arm)
    save_tensors(path, model.state_dict(), METADATA | {"arm": arm} | changed)
    return model


def build_model() -> nn.Module:
    """For ``package.module:function``."""
    return network()


def build_seven_classes() -> nn.Module:
    return network(classes=7)


def build_branching() -> nn.Module:
    return _Branching(network()).eval()


def build_unfoldable() -> nn.Module:
    """A network whose only batch norm stands between activations."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.fill_(0.5)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    return nn.Sequential(*layers).eval()


def build_resnet() -> nn.Module:
    return _of_transformers(
        "ResNet", embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 2, 1], layer_type="basic", num_labels=10
    )


def build_mobilenet() -> nn.Module:
    return _of_transformers("MobileNetV2", depth_multiplier=0.25, image_size=32, num_labels=10)


def _of_transformers(name: str, **arguments: Any) -> nn.Module:
    """A model of transformers, built from its configuration, whose statistics are those of some batches."""
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**arguments)
    model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 32, 32))
    return model.eval()


def build_training() -> nn.Module:
    return network().train()


def build_nothing() -> object:
    return object()


def build_failing() -> nn.Module:
    raise RuntimeError("no such weights.\nmore")


def build_two_outputs() -> nn.Module:
    return _Pair(network())


def build_fixed_size() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval()


class _Pair(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.model(x)
        return y, -y


class _Branching(nn.Module):
    """What no graph can hold: it goes by the values of its input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(x)
        return y if bool(x.abs().sum() > 0) else -y
