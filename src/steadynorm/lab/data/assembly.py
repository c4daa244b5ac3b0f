"""Build the data set that experiments train on from its parts: labels, images, and their scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.cache import cached_rows
from steadynorm.lab.data.decoding import decode
from steadynorm.lab.data.images import Dataset, Images, chosen_by_class
from steadynorm.lab.data.parts import Part, Parts, Reading, part_of_images
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.words import counted

__all__ = ["assemble", "measured_scale", "numbered", "resized"]

SHARE = 0.1
"""Default share of the images that are held out."""
SEED_OF_SPLIT = 0
_CHUNK = 1_024


def assemble(parts: Parts, reading: Reading) -> Dataset:
    """Decode a data set, hold out a share if it has no validation part, and measure its scale.

    Raises:
        UserError: an image or a label is invalid.
    """
    given = {"train": parts.train} | ({} if parts.validation is None else {"validation": parts.validation})
    labels, classes = _labels(given, parts.classes, reading)
    if parts.validation is None:
        rows = _held_out(labels["train"], reading)
        pieces = {word: (parts.train, each, labels["train"][each]) for word, each in rows.items()}
    else:
        if reading.validation_share is not None:
            raise UserError("--validation-share: is for data without a validation part; these have one. Drop it.")
        pieces = {word: (part, np.arange(part.count), labels[word]) for word, part in given.items()}
    made = dict[str, Images]()
    for word, (part, rows_of_part, known) in pieces.items():
        like = None if not made else form_of(made["train"])
        rows_made = _rows(f"{parts.name}-{word}", part, rows_of_part, reading, like=like)
        made[word] = Images.of_rows(rows_made, torch.from_numpy(np.ascontiguousarray(known)))
    mean, std = parts.scale or measured_scale(made["train"], reading)
    return Dataset(name=parts.name, classes=classes, mean=mean, std=std, **made)


def form_of(images: Images) -> tuple[int, int, int]:
    """Return height, width and channels."""
    _, height, width, channels = images.rows.shape
    return height, width, channels


def _rows(
    name: str, part: Part, chosen: NDArray[np.int64], reading: Reading, *, like: tuple[int, int, int] | None
) -> torch.Tensor:
    """Decode some rows, or load them from the cache if their images are files."""
    word = name.rpartition("-")[2]
    if part.pixels is not None or not part.sources:
        return decode(part, chosen, reading, what=word, like=like)
    of_rows = [part.sources[row] for row in chosen.tolist()] if len(part.sources) == part.count else part.sources
    detail = repr((reading.image_size, reading.columns, like, part.count)).encode() + chosen.tobytes()
    return cached_rows(
        name,
        lambda folder: decode(part, chosen, reading, what=word, like=like, folder=folder),
        sources=of_rows,
        detail=detail,
        progress=reading.progress,
    )


def _held_out(labels: NDArray[np.int64], reading: Reading) -> dict[str, NDArray[np.int64]]:
    share = SHARE if reading.validation_share is None else reading.validation_share
    if not (0 < share < 1 and 0 < round(len(labels) * share) < len(labels)):
        raise UserError(
            f"--validation-share: must leave images in both parts, got {share} of {counted(len(labels), 'image')}."
        )
    rest, held = chosen_by_class(labels, share=share, seed=SEED_OF_SPLIT)
    reading.progress(
        f"the data have no validation part: {len(held):,} of {len(labels):,} images are held out, "
        "in proportion to the classes"
    )
    return {"train": rest, "validation": held}


def _labels(
    parts: dict[str, Part], classes: tuple[str, ...] | None, reading: Reading
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Return labels as indices of the classes."""
    found = dict[str, NDArray[Any]]()
    for word, part in parts.items():
        if not part.count:
            raise UserError(f"{reading.flag}: {word}: must hold images, got none.")
        if part.labels is None:
            raise UserError(f"{reading.flag}: {part.called(0)}: images must have labels, got none.")
        if part.labels.dtype.kind not in "iuU":
            raise UserError(f"{part.called(0)}: labels must be whole numbers or text, got {part.labels.dtype}.")
        found[word] = part.labels
    if found["train"].dtype.kind == "U" and classes is None:
        classes = tuple(np.unique(found["train"]).tolist())
    numbers = {word: _numbers(parts[word], each, classes) for word, each in found.items()}
    if classes is None:
        classes = tuple(map(str, range(_number_of_classes(numbers["train"], parts["train"]))))
    for word, each in numbers.items():
        _check_range(each, len(classes), parts[word], given=word == "validation")
    if len(np.unique(numbers["train"])) < 2:
        raise UserError(
            f"{reading.flag}: {parts['train'].called(0)}: there must be training images of two classes, got all "
            f"{parts['train'].count:,} of {classes[int(numbers['train'][0])]}."
        )
    _tell_absent(numbers, classes, reading)
    return numbers, classes


def numbered(part: Part, parts: Parts) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the labels of a labelled part as indices of the classes, and the classes.

    Raises:
        UserError: a label belongs to no class.
    """
    assert part.labels is not None
    classes, train = parts.classes, parts.train
    if classes is None and train.labels is not None and train.labels.dtype.kind == "U":
        classes = tuple(np.unique(train.labels).tolist())
    numbers = _numbers(part, part.labels, classes)
    if classes is None:
        known = numbers if train.labels is None else _numbers(train, train.labels, None)
        classes = tuple(map(str, range(_number_of_classes(known, train))))
    _check_range(numbers, len(classes), part, given=part is not train)
    return numbers, classes


def _numbers(part: Part, labels: NDArray[Any], classes: Sequence[str] | None) -> NDArray[np.int64]:
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    places = {name: place for place, name in enumerate(classes or ())}
    unknown = next((row for row, name in enumerate(labels.tolist()) if name not in places), None)
    if unknown is not None:
        raise UserError(f"{part.called(unknown)}: label must be one of the training images', got {labels[unknown]!s}.")
    return np.array([places[name] for name in labels.tolist()], dtype=np.int64)


def _number_of_classes(labels: NDArray[np.int64], part: Part) -> int:
    """Count the classes by the largest label; refuses labels that are not class numbers."""
    count = int(labels.max()) + 1
    if count > max(len(labels), 2):
        row = int(labels.argmax())
        raise UserError(
            f"{part.called(row)}: labels must be numbers of classes, counted from 0, got {labels[row]} with "
            f"{counted(len(labels), 'image')}."
        )
    return count


def _check_range(labels: NDArray[np.int64], classes: int, part: Part, *, given: bool) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        of = " as those of the training images" if given else ""
        hint = " A label of -1 means that there is none: leave such images out." if labels[wrong[0]] == -1 else ""
        raise UserError(
            f"{part.called(int(wrong[0]))}: label must be 0 to {classes - 1}{of}, got {labels[wrong[0]]}.{hint}"
        )


def _tell_absent(numbers: dict[str, NDArray[np.int64]], classes: Sequence[str], reading: Reading) -> None:
    for word, labels in numbers.items():
        absent = sorted(set(range(len(classes))) - set(np.unique(labels).tolist()))
        if absent:
            shown = ", ".join(classes[each] for each in absent[:5]) + (", ..." if len(absent) > 5 else "")
            reading.progress(f"{word}: no image of {len(absent)} of {len(classes)} classes: {shown}")


def measured_scale(images: Images, reading: Reading) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each channel, in units where a full byte is 1.

    From counts of each shade, so that the result does not depend on the order of the additions.
    """
    rows = images.rows
    counts = torch.zeros((rows.shape[3], 256), dtype=torch.int64)
    for some in torch.split(rows, _CHUNK):
        for channel, row in enumerate(counts):
            row += torch.bincount(some[..., channel].flatten(), minlength=256)
    shades = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ shades
    std = ((shades - mean[:, None]).square() * shares).sum(1).sqrt()
    if not bool((std > 0).all()):
        reading.progress("a channel of the training images is constant; it is not scaled")
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def resized(dataset: Dataset, reading: Reading) -> Dataset:
    """Return a data set with images of the requested size and the same scale."""
    if reading.image_size in (None, dataset.image_size):
        return dataset
    parts = Parts(
        name=dataset.name,
        train=part_of_images(dataset.train, what="train"),
        validation=part_of_images(dataset.validation, what="validation"),
        classes=dataset.classes,
        scale=(dataset.mean, dataset.std),
    )
    return assemble(parts, reading)
