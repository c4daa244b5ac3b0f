"""The networks that streams are shown to, their data, and their training; weights are kept for a second run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.adaptation.architectures import ARCHITECTURES
from benchmarks.doctor.training import Data, train_
from steadynorm.lab.data import Dataset, Images, take
from steadynorm.lab.data.images import SIZE, random_stream
from steadynorm.lab.data.loading import load_dataset

__all__ = ["NETWORKS", "Half", "Network", "Split", "load_split", "trained"]

Half = Literal["tuning", "held out"]
Family = Literal["plain", "residual", "depthwise"]
Source = Literal["cifar10", "shapes", "digits"]

SAMPLES = 10_000
"""Images that a network is trained on, at most."""
CALIBRATION = 1_000
"""Images held out of the training, at most a quarter: clean ones, which methods may be calibrated on."""
EPOCHS: dict[Source, int] = {"cifar10": 5, "shapes": 16, "digits": 16}
_CALIBRATION_DRAW = 2**64 - 7


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: an architecture of ``benchmarks.doctor``, trained here.

    Args:
        half: whether a method may be designed, and its constants chosen, on it.
        family: of architectures.
        architecture: its name in the doctor's benchmark.
        source: of its data.
    """

    half: Half
    family: Family
    architecture: str
    source: Source

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"{self.architecture} on {self.source}"


def _networks(half: Half, *rows: tuple[Family, str, Source]) -> tuple[Network, ...]:
    return tuple(Network(half=half, family=family, architecture=name, source=source) for family, name, source in rows)


NETWORKS: dict[str, Network] = {
    each.name: each
    for each in (
        *_networks(
            "tuning",
            ("plain", "cnn", "cifar10"),
            ("residual", "csp", "cifar10"),
            ("depthwise", "shufflenet", "cifar10"),
            ("residual", "csp", "digits"),
            ("plain", "hrnet", "shapes"),
            # Held out at first; they have been looked at, and belong to this half since.
            ("plain", "inception", "cifar10"),
            ("plain", "squeezenet", "cifar10"),
            ("residual", "wide resnet", "cifar10"),
            ("depthwise", "xception", "cifar10"),
            ("plain", "squeezenet", "shapes"),
            ("residual", "wide resnet", "shapes"),
            ("depthwise", "efficientnet", "digits"),
            ("plain", "textnet", "cifar10"),
            ("residual", "transformers", "cifar10"),
            ("depthwise", "mobilenet", "cifar10"),
            ("plain", "deeplab", "shapes"),
            ("depthwise", "darts", "shapes"),
            ("residual", "regnet", "digits"),
        ),
        *_networks(
            "held out",
            ("plain", "unet", "cifar10"),
            ("residual", "mixer", "cifar10"),
            ("depthwise", "convnext", "cifar10"),
            ("residual", "bottleneck", "shapes"),
            ("depthwise", "ghost", "shapes"),
            ("plain", "vgg", "digits"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """A data set of 32 x 32 pixels in three channels, in three parts; every image once."""

    dataset: Dataset
    train: Images
    calibration: Images
    test: Images

    def inputs(self, images: Images) -> Tensor:
        """Return what a network is fed, float32 of shape (N, 3, 32, 32)."""
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.dataset.mean, self.dataset.std))
        return ((images.pixels.float() / 255 - mean) / std).contiguous()


@cache
def load_split(source: Source, folder: Path | None) -> Split:
    """Load a data set; digits get a border of 2 pixels and three equal channels."""
    dataset = load_dataset(source, data_dir=folder if source == "cifar10" else None)
    dataset = replace(dataset, train=_wide(dataset.train), validation=_wide(dataset.validation))
    dataset = replace(dataset, mean=_three(dataset.mean), std=_three(dataset.std))
    count = len(dataset.train)
    held = min(CALIBRATION, count // 4)
    order = torch.from_numpy(random_stream(0, _CALIBRATION_DRAW).permutation(count))
    return Split(
        dataset=dataset,
        train=take(dataset.train, order[held : held + SAMPLES]),
        calibration=take(dataset.train, order[:held]),
        test=dataset.validation,
    )


def _wide(images: Images) -> Images:
    border = (SIZE - images.pixels.shape[-1]) // 2
    pixels = functional.pad(images.pixels, (border,) * 4).expand(-1, 3, -1, -1)
    return Images.of_rows(pixels.permute(0, 2, 3, 1).contiguous(), images.labels)


def _three(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values


def trained(network: Network, seed: int, split: Split, folder: Path) -> nn.Module:
    """Return a trained network in evaluation, from the folder where it is there."""
    torch.manual_seed(seed)
    architecture = ARCHITECTURES[network.architecture]
    model, path = architecture.build(), folder / f"{network.name.replace(' ', '_')}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    part = (split.inputs(split.train), split.train.labels)
    epochs = EPOCHS[network.source]
    data = Data(train=part, validation=part, test=part)
    train_(model, data, seed=seed, epochs=epochs, rate=architecture.rate, mirrors=network.source == "cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: each.contiguous() for name, each in model.state_dict().items()}, path)
    return model
