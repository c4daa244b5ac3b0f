"""A few batches to look at a model with: from a data set by name, a directory of images, or an .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from steadynorm.lab.data import DATASETS, evaluation_batches, load_dataset, take
from steadynorm.lab.data.images import Images, random_stream
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.words import counted, listing

__all__ = ["IMAGES", "Sample", "Wanted", "load_sample"]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
"""Endings of the files that are read as images."""
PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, by which nearly all networks for photographs are fed."""
SIDE = (224, 224)
KINDS = {"train": "training", "validation": "validation"}
_DRAW = 2**64 - 2
"""Stream of random numbers, apart from those of training."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many batches, and what is done to the numbers.

    Args:
        batch_size: samples in a batch.
        number: of batches; fewer where the data have less.
        seed: decides which samples.
        mean: subtracted from pixels in [0, 1], per channel; None is what is usual for the data.
        std: what the centred pixels are divided by; likewise.
        input_size: height and width of images; None is what they have, 224 x 224 for files.
        data_dir: where a data set of that name lies.
        part: of a data set of that name, of which samples are taken.
        in_order: take the first samples in their order, those of an incomplete last batch too, and none at random.
    """

    batch_size: int = 64
    number: int = 8
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int] | None = None
    data_dir: Path | None = None
    part: Literal["train", "validation"] = "train"
    in_order: bool = False

    def rows(self, count: int) -> Tensor:
        """Choose samples at random, and leave out an incomplete last batch that is not the only one; or the first."""
        if self.in_order:
            return torch.arange(min(count, self.number * self.batch_size))
        chosen = random_stream(self.seed, _DRAW).permutation(count)[: self.number * self.batch_size]
        kept = len(chosen) - len(chosen) % self.batch_size
        return torch.from_numpy(chosen[: kept or len(chosen)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What a model is looked at with.

    Args:
        batches: inputs of shape (N, ...), each with its labels, int64 of shape (N,), or alone.
        told: what they are and how they were made, a sentence without its stop.
        classes: number of labels that there are; 0 without labels.
    """

    batches: tuple[tuple[Tensor, Tensor] | Tensor, ...]
    told: str
    classes: int = 0

    def without_labels(self) -> Sample:
        """Give the inputs alone."""
        inputs = tuple(each if isinstance(each, Tensor) else each[0] for each in self.batches)
        return replace(self, batches=inputs, classes=0)


def load_sample(data: str, wanted: Wanted, progress: Callable[[str], None], *, flag: str = "--data") -> Sample:
    """Load batches.

    Args:
        data: name of a data set of :data:`steadynorm.lab.data.DATASETS`, of which training images are taken; a
            directory with a folder of images for each class, or images alone; or an ``.npz`` file with an array ``x``,
            shape (N, ...), and where there are labels an array ``y``, integers of shape (N,).
        wanted: how many, and how they are made.
        progress: told what takes long.
        flag: by which they were given, for messages.

    Raises:
        UserError: there is no such data, or they cannot be read.
    """
    if data in DATASETS:
        return _from_dataset(data, wanted, progress)
    place = Path(data)
    if wanted.data_dir is not None:
        raise UserError(f"--data-dir: says where a data set lies that has a name; {data} is a place itself.")
    if place.is_dir():
        return _from_directory(place, wanted, flag)
    if place.suffix == ".npz":
        return _from_arrays(place, wanted, flag)
    raise UserError(
        f"{flag}: must be one of {', '.join(DATASETS)}, a directory of images, or an .npz file, got {data}."
    )


def _from_dataset(name: str, wanted: Wanted, progress: Callable[[str], None]) -> Sample:
    dataset = load_dataset(name, data_dir=wanted.data_dir, progress=progress)
    dataset = replace(dataset, mean=wanted.mean or dataset.mean, std=wanted.std or dataset.std)
    _check_channels(len(dataset.mean), len(dataset.std), dataset.train.pixels.shape[1])
    source: Images = getattr(dataset, wanted.part)
    images = take(source, wanted.rows(len(source)))
    pairs = evaluation_batches(images, dataset=dataset, batch_size=wanted.batch_size, device=torch.device("cpu"))
    batches = tuple((_scaled(x.contiguous(), wanted.input_size), y) for x, y in pairs)
    told = f"{_counted(batches, f'{KINDS[wanted.part]} image', name)}, {_normalization(dataset.mean, dataset.std)}"
    return Sample(batches=batches, told=told, classes=len(dataset.classes))


def _from_arrays(path: Path, wanted: Wanted, flag: str) -> Sample:
    try:
        if path.exists() and not zipfile.is_zipfile(path):
            raise UserError(f"{flag}: {path}: is no .npz file.")
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y") if name in file}
            names = list(file)
    except FileNotFoundError as error:
        raise UserError(f"{flag}: {path}: there is no such file.") from error
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{flag}: {path}: is no .npz file of plain arrays ({one_line(error)}).") from error
    if "x" not in arrays:
        raise UserError(f"{flag}: {path}: must have an array x, and y where there are labels; it has {listing(names)}.")
    x, y = arrays["x"], arrays.get("y")
    if x.dtype.kind not in "fiub" or x.ndim == 0 or len(x) == 0:
        raise UserError(f"{flag}: {path}: x must be numbers of shape (N, ...), got {x.dtype} {x.shape}.")
    if y is not None and (y.dtype.kind not in "iu" or y.shape != x.shape[:1]):
        raise UserError(f"{flag}: {path}: y must be integers of shape ({len(x)},), got {y.dtype} {y.shape}.")
    rows = wanted.rows(len(x))
    inputs, how = _inputs(x[rows.numpy()], wanted)
    batches = _together(inputs, None if y is None else torch.from_numpy(y[rows.numpy()].astype(np.int64)), wanted)
    told = f"{_counted(batches, 'sample', path.name)}, {how}"
    return Sample(batches=batches, told=told, classes=0 if y is None else int(y.max()) + 1)


def _inputs(x: NDArray[Any], wanted: Wanted) -> tuple[Tensor, str]:
    """Make a model's input of an array: floats as they are, bytes as pixels, other integers as indices."""
    if x.dtype.kind == "f":
        given = torch.from_numpy(x.astype(np.float32))
        return _normalized(given, wanted) if wanted.mean or wanted.std else (given, "as they are")
    if x.dtype != np.uint8:
        return torch.from_numpy(x.astype(np.int64)), "as they are"
    pixels = torch.from_numpy(x)
    if pixels.dim() == 4 and pixels.shape[1] not in (1, 3, 4) and pixels.shape[3] in (1, 3, 4):
        pixels = pixels.permute(0, 3, 1, 2)
    return _normalized(pixels.contiguous().float() / 255, wanted)


def _from_directory(place: Path, wanted: Wanted, flag: str) -> Sample:
    classes = sorted(each.name for each in place.iterdir() if each.is_dir() and _images_in(each))
    files = [(path, label) for label, name in enumerate(classes) for path in _images_in(place / name)]
    files = files or [(path, 0) for path in _images_in(place)]
    if not files:
        raise UserError(f"{flag}: {place}: must hold images, or a folder of images for each class; it has none.")
    wanted = replace(
        wanted,
        mean=wanted.mean or PHOTOGRAPHS[0],
        std=wanted.std or PHOTOGRAPHS[1],
        input_size=wanted.input_size or SIDE,
    )
    chosen = [files[row] for row in wanted.rows(len(files)).tolist()]
    assert wanted.input_size is not None
    pixels = torch.stack([_read_image(path, wanted.input_size, flag) for path, _ in chosen])
    inputs, how = _normalized(pixels, wanted)
    labels = torch.tensor([label for _, label in chosen]) if classes else None
    batches = _together(inputs, labels, wanted)
    folders = f" with {counted(len(classes), 'class folder')}" if classes else ""
    size = " x ".join(map(str, wanted.input_size))
    told = f"{_counted(batches, 'image', f'{place}{folders}')}, cut to {size}, {how}"
    return Sample(batches=batches, told=told, classes=len(classes))


def _images_in(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.suffix.lower() in IMAGES and path.is_file())


def _read_image(path: Path, size: tuple[int, int], flag: str) -> Tensor:
    """Read an image, scale it until it covers the size, and cut its middle out; shape (3, H, W) in [0, 1]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.fit(file.convert("RGB"), (size[1], size[0]), method=Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{flag}: {path}: is no image that can be read ({one_line(error)}).") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _normalized(pixels: Tensor, wanted: Wanted) -> tuple[Tensor, str]:
    mean, std = wanted.mean or (0.0,), wanted.std or (1.0,)
    if pixels.dim() > 1:
        _check_channels(len(mean), len(std), pixels.shape[1])
    shape = (1, -1, *([1] * (pixels.dim() - 2)))
    made = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    return _scaled(made, wanted.input_size), _normalization(mean, std)


def _scaled(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or x.dim() != 4 or tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _check_channels(means: int, stds: int, channels: int) -> None:
    """Refuse means and standard deviations that are not one for each channel, or one for all.

    Raises:
        UserError: they are not.
    """
    for flag, given in (("--mean", means), ("--std", stds)):
        if given not in (1, channels):
            raise UserError(f"{flag}: must be one number or {channels}, one for each channel, got {given}.")


def _together(inputs: Tensor, labels: Tensor | None, wanted: Wanted) -> tuple[tuple[Tensor, Tensor] | Tensor, ...]:
    parts = torch.split(inputs, wanted.batch_size)
    return parts if labels is None else tuple(zip(parts, torch.split(labels, wanted.batch_size), strict=True))


def _normalization(mean: Sequence[float], std: Sequence[float]) -> str:
    if set(mean) == {0.0} and set(std) == {1.0}:
        return "scaled to [0, 1]"
    return f"normalized by mean {_numbers(mean)} and std {_numbers(std)}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _counted(batches: Sequence[tuple[Tensor, Tensor] | Tensor], noun: str, place: str) -> str:
    sizes = [len(each) if isinstance(each, Tensor) else len(each[0]) for each in batches]
    return f"{counted(sum(sizes), noun)} of {place}{f' in batches of {sizes[0]}' if len(sizes) > 1 else ''}"
