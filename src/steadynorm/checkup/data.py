"""Load a few batches to examine a model with, from arrays, images or any data layout that experiments read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from steadynorm.lab.data import DATASETS, archives, evaluation_batches, load_dataset, take
from steadynorm.lab.data.arrays import part_of_arrays
from steadynorm.lab.data.class_folders import images_in
from steadynorm.lab.data.images import Images, random_stream
from steadynorm.lab.data.layouts import layout_of, open_parts
from steadynorm.lab.data.parts import Part, Parts, Reading
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.records import Record
from steadynorm.reporting.words import counted, listing

__all__ = ["Sample", "Wanted", "load_sample"]

PHOTOGRAPHS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, the usual normalization for photographs."""
SIDE = (224, 224)
KINDS = {"train": "training", "validation": "validation"}
_DRAW = 2**64 - 2
"""Random stream, separate from those of training."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Number of batches and their preprocessing.

    Args:
        batch_size: samples in a batch.
        number: largest number of batches.
        seed: selects the samples.
        mean: subtracted from pixels in [0, 1], per channel; None uses the data's usual mean.
        std: divides the centred pixels, per channel; None uses the data's usual standard deviation.
        input_size: height and width of images; None keeps their size, and uses 224 x 224 for files.
        data_dir: directory of a named data set.
        columns: names of the images and of the labels, in a table or an archive of arrays.
        trained: the record of the run that trained the model: images of its form are resized and normalized as there.
        part: part of the data to sample; ignored if there is only one.
        in_order: take the first samples in order, with an incomplete last batch, instead of random ones.
    """

    batch_size: int = 64
    number: int = 8
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int] | None = None
    data_dir: Path | None = None
    columns: tuple[str, str] | None = None
    trained: Record | None = None
    part: Literal["train", "validation"] = "train"
    in_order: bool = False

    def rows(self, count: int) -> Tensor:
        """Choose random samples without an incomplete last batch (unless it is the only one), or the first samples."""
        if self.in_order:
            return torch.arange(min(count, self.number * self.batch_size))
        chosen = random_stream(self.seed, _DRAW).permutation(count)[: self.number * self.batch_size]
        kept = len(chosen) - len(chosen) % self.batch_size
        return torch.from_numpy(chosen[: kept or len(chosen)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Batches to examine a model with.

    Args:
        batches: inputs of shape (N, ...), each with its labels, int64 of shape (N,), or alone.
        told: what they are and how they were made, a sentence without its full stop.
        classes: number of distinct labels; 0 without labels.
    """

    batches: tuple[tuple[Tensor, Tensor] | Tensor, ...]
    told: str
    classes: int = 0

    def without_labels(self) -> Sample:
        """Return the sample without its labels."""
        inputs = tuple(each if isinstance(each, Tensor) else each[0] for each in self.batches)
        return replace(self, batches=inputs, classes=0)


def load_sample(data: str, wanted: Wanted, progress: Callable[[str], None], *, flag: str = "--data") -> Sample:
    """Load batches.

    Args:
        data: name of a data set of :data:`steadynorm.lab.data.DATASETS`; data in any layout of
            :data:`steadynorm.lab.data.layouts.LAYOUTS`; a directory with images alone; or an ``.npz`` file with an
            array ``x``, shape (N, ...), and where there are labels an array ``y``, integers of shape (N,).
        wanted: number of batches and their preprocessing.
        progress: receives messages about slow steps.
        flag: flag that names the data, for messages.

    Raises:
        UserError: the data do not exist or cannot be read.
    """
    if data in DATASETS:
        return _from_dataset(data, wanted, progress)
    if wanted.data_dir is not None:
        raise UserError(f"--data-dir: is for named data sets, and {data} is a path. Drop it.")
    reading = Reading(columns=wanted.columns, progress=progress, flag=flag, size_flag="--input-size")
    if archives.recognises(data):
        return _from_arrays(Path(data), wanted, reading)
    if Path(data).is_dir() and (alone := images_in(Path(data))) and layout_of(data) is None:
        return _from_parts(Parts(name=data, train=_of_files(alone)), data, wanted, reading)
    return _from_parts(open_parts(data, reading, names=DATASETS), data, wanted, reading)


def _from_dataset(name: str, wanted: Wanted, progress: Callable[[str], None]) -> Sample:
    run = {} if wanted.trained is None or wanted.input_size is not None else wanted.trained.config
    size = run.get("image_size") if run.get("data") == name else None
    dataset = load_dataset(name, data_dir=wanted.data_dir, image_size=size, progress=progress)
    dataset = replace(dataset, mean=wanted.mean or dataset.mean, std=wanted.std or dataset.std)
    _check_channels(len(dataset.mean), len(dataset.std), dataset.train.pixels.shape[1])
    source: Images = getattr(dataset, wanted.part)
    images = take(source, wanted.rows(len(source)))
    pairs = evaluation_batches(images, dataset=dataset, batch_size=wanted.batch_size, device=torch.device("cpu"))
    batches = tuple((_scaled(x.contiguous(), wanted.input_size), y) for x, y in pairs)
    told = f"{_counted(batches, f'{KINDS[wanted.part]} image', name)}, {_normalization(dataset.mean, dataset.std)}"
    return Sample(batches=batches, told=told, classes=len(dataset.classes))


def _from_parts(parts: Parts, data: str, wanted: Wanted, reading: Reading) -> Sample:
    """Take samples of the wanted part, or of the only one."""
    from steadynorm.lab.data.assembly import measured_scale, numbered  # needs pillow
    from steadynorm.lab.data.decoding import decode

    part = parts.train if wanted.part == "train" or parts.validation is None else parts.validation
    labels, classes = (None, ()) if part.labels is None else numbered(part, parts)
    rows = wanted.rows(part.count)
    known = None if labels is None else torch.from_numpy(labels[rows.numpy()])
    if part.are_files and not _fed_as_in_training(wanted):
        return _from_files(list(part.images(rows.numpy())), known, len(classes), data, wanted, reading.flag)
    order = rows.argsort()  # tables are read from the first row to the last
    mean, std = parts.scale or (None, None)
    size = wanted.input_size
    if wanted.trained is not None and _fed_as_in_training(wanted):
        height, width = wanted.trained.resolved["image_size"]
        mean, std, size = (
            tuple(wanted.trained.resolved["mean"]),
            tuple(wanted.trained.resolved["std"]),
            (height, width),
        )
    found = decode(part, rows[order].numpy(), replace(reading, image_size=size), what=data)
    images = Images.of_rows(found[order.argsort()], torch.zeros(len(rows), dtype=torch.int64))
    if mean is None or std is None:
        mean, std = measured_scale(images, reading)
    wanted = replace(wanted, mean=wanted.mean or mean, std=wanted.std or std, input_size=None)
    inputs, how = _normalized(images.pixels.contiguous().float() / 255, wanted)
    batches = _together(inputs, known, wanted)
    folders = f" with {counted(len(classes), 'class folder')}" if part.are_files and classes else ""
    size_told = f", resized to {' x '.join(map(str, size))}" if size is not None else ""
    return Sample(
        batches=batches,
        told=f"{_counted(batches, 'image', f'{data}{folders}')}{size_told}, {how}",
        classes=len(classes),
    )


def _fed_as_in_training(wanted: Wanted) -> bool:
    """Whether to preprocess images as in the model's run: it is recorded, and the user overrides nothing."""
    if wanted.trained is None or not {"image_size", "mean", "std"} <= wanted.trained.resolved.keys():
        return False
    return wanted.mean is None and wanted.std is None and wanted.input_size is None


def _of_files(files: Sequence[Path]) -> Part:
    """Build a part from image files without labels."""
    return Part(
        count=len(files),
        labels=None,
        images=lambda rows: (files[row] for row in rows.tolist()),
        called=lambda row: str(files[row]),
        are_files=True,
    )


def _from_arrays(path: Path, wanted: Wanted, reading: Reading) -> Sample:
    flag, (x_name, y_name) = reading.flag, wanted.columns or ("x", "y")
    arrays = archives.load_arrays(path, {x_name, y_name}, flag=flag)
    if x_name not in arrays:
        names = archives.array_names(path, flag=flag)
        if wanted.columns is None and archives.choose(names):
            return _from_parts(archives.read(str(path), reading), str(path), wanted, reading)
        raise UserError(
            f"{flag}: {path}: must have an array {x_name}, and {y_name} if there are labels; it has {listing(names)}."
        )
    x, y = arrays[x_name], arrays.get(y_name)
    if x.dtype.kind not in "fiub" or x.ndim == 0 or len(x) == 0:
        raise UserError(f"{flag}: {path}: {x_name} must be numbers of shape (N, ...), got {x.dtype} {x.shape}.")
    if y is not None and (y.dtype.kind not in "iu" or y.shape != x.shape[:1]):
        raise UserError(f"{flag}: {path}: {y_name} must be integers of shape ({len(x)},), got {y.dtype} {y.shape}.")
    if _fed_as_in_training(wanted):
        part = part_of_arrays(x, y, reading, what=f"{path}: {x_name}")
        return _from_parts(Parts(name=path.stem, train=part), str(path), wanted, reading)
    rows = wanted.rows(len(x))
    inputs, how = _inputs(x[rows.numpy()], wanted)
    batches = _together(inputs, None if y is None else torch.from_numpy(y[rows.numpy()].astype(np.int64)), wanted)
    told = f"{_counted(batches, 'sample', path.name)}, {how}"
    return Sample(batches=batches, told=told, classes=0 if y is None else int(y.max()) + 1)


def _inputs(x: NDArray[Any], wanted: Wanted) -> tuple[Tensor, str]:
    """Convert an array to a model's input: floats unchanged, bytes as pixels, other integers as indices."""
    if x.dtype.kind == "f":
        given = torch.from_numpy(x.astype(np.float32))
        return _normalized(given, wanted) if wanted.mean or wanted.std else (given, "as they are")
    if x.dtype != np.uint8:
        return torch.from_numpy(x.astype(np.int64)), "as they are"
    pixels = torch.from_numpy(x)
    if pixels.dim() == 4 and pixels.shape[1] not in (1, 3, 4) and pixels.shape[3] in (1, 3, 4):
        pixels = pixels.permute(0, 3, 1, 2)
    return _normalized(pixels.contiguous().float() / 255, wanted)


def _from_files(
    files: Sequence[Path], labels: Tensor | None, classes: int, data: str, wanted: Wanted, flag: str
) -> Sample:
    """Load images with the usual preprocessing for photographs: scaled and cropped to one size."""
    size = wanted.input_size or SIDE
    wanted = replace(wanted, mean=wanted.mean or PHOTOGRAPHS[0], std=wanted.std or PHOTOGRAPHS[1], input_size=size)
    inputs, how = _normalized(torch.stack([_read_image(path, size, flag) for path in files]), wanted)
    batches = _together(inputs, labels, wanted)
    folders = f" with {counted(classes, 'class folder')}" if classes else ""
    told = f"{_counted(batches, 'image', f'{data}{folders}')}, cut to {' x '.join(map(str, size))}, {how}"
    return Sample(batches=batches, told=told, classes=classes)


def _read_image(path: Path, size: tuple[int, int], flag: str) -> Tensor:
    """Read an image, scale it to cover the size, and crop the centre; shape (3, H, W) in [0, 1]."""
    from PIL import Image, ImageOps

    from steadynorm.lab.data.decoding import open_image, plain, upright

    try:
        with open_image(path) as file:
            image, _ = plain(upright(file))
            cut = ImageOps.fit(image.convert("RGB"), (size[1], size[0]), method=Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{flag}: {path}: is not a readable image ({one_line(error)}).") from error
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255


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
    """Check that there is one mean and one standard deviation for each channel, or one for all.

    Raises:
        UserError: the numbers do not match the channels.
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
