"""A data set that a function of the user's gives."""

from __future__ import annotations

import re
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.arrays import as_bytes, as_rows, part_of_arrays
from steadynorm.lab.data.images import Dataset, Images
from steadynorm.lab.data.parts import Part, Parts, Reading, part_of_images
from steadynorm.lab.functions import call_function
from steadynorm.reporting.failure import UserError, one_line

__all__ = ["FORMS", "read", "recognises"]

FORMS = (
    "a steadynorm.lab.data.Dataset, a pair (images, labels), a torch Dataset of such pairs, or two of either: for "
    "training and validation"
)
"""What such a function may return."""


def recognises(data: str) -> bool:
    """Whether it is written as PACKAGE.MODULE:FUNCTION."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", data) is not None


def read(data: str, reading: Reading) -> Parts:
    """Call the function and see what it gives.

    Raises:
        UserError: it cannot be called, or gives something else than :data:`FORMS`.
    """
    found = call_function(data)
    name = data.rpartition(":")[2]
    if isinstance(found, Dataset):
        parts = [part_of_images(images, what=f"{data}: {word}") for word, images in _splits(found).items()]
        return Parts(
            name=found.name, train=parts[0], validation=parts[1], classes=found.classes, scale=(found.mean, found.std)
        )
    two = isinstance(found, Sequence) and len(found) == 2 and not _is_array(found[0])
    given = {"training": found[0], "validation": found[1]} if two else {"images": found}
    parts = [_part(each, reading, f"{data}: {word}") for word, each in given.items()]
    classes = _classes(found[0] if two else found)
    return Parts(name=name, train=parts[0], validation=parts[1] if two else None, classes=classes)


def _splits(dataset: Dataset) -> dict[str, Images]:
    return {"training": dataset.train, "validation": dataset.validation}


def _is_array(value: object) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _part(given: Any, reading: Reading, what: str) -> Part:  # noqa: ANN401 (whatever the function gave)
    if isinstance(given, Images):
        return part_of_images(given, what=what)
    if isinstance(given, Sequence) and len(given) == 2 and _is_array(given[0]):
        images, labels = (_array(each) for each in given)
        return part_of_arrays(images, labels, reading, what=what)
    if isinstance(given, Sized) and hasattr(given, "__getitem__") and not _is_array(given):
        return _of_items(given, reading, what)
    raise UserError(f"{what}: must be {FORMS}; got {type(given).__name__}.")


def _array(value: Any) -> NDArray[Any]:  # noqa: ANN401 (a tensor, an array or a list)
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _of_items(given: Any, reading: Reading, what: str) -> Part:  # noqa: ANN401 (what torch calls a map-style data set)
    """Take every item of a data set once; images are kept as they come, bytes where they are floats."""
    images, labels = [], list[Any]()
    for row in range(len(given)):
        try:
            image, label = given[row]
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}: item {row} must be an image and its label ({one_line(error)}).") from error
        images.append(_item(image, reading, f"{what}: item {row}"))
        labels.append(label.item() if hasattr(label, "item") else label)
    if not images:
        raise UserError(f"{what}: must hold images, got none.")
    return Part(
        count=len(images),
        labels=np.array(labels),
        images=lambda chosen: (images[row] for row in chosen.tolist()),
        called=lambda row: f"{what}: item {row}",
    )


def _item(image: Any, reading: Reading, what: str) -> Any:  # noqa: ANN401 (an array, a tensor or an image of Pillow's)
    if not _is_array(image):
        return image
    quiet = Reading(flag=reading.flag)
    return as_bytes(as_rows(_array(image)[None], what), quiet, what)[0]


def _classes(given: Any) -> tuple[str, ...] | None:  # noqa: ANN401 (whatever the function gave)
    """Return the names that torchvision's data sets have."""
    names = getattr(given, "classes", None)
    return tuple(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) else None
