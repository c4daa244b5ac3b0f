"""Image files in a folder for each class, with or without folders for training and validation above them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from steadynorm.lab.data.parts import Part, Parts, Reading
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.words import counted, listing

__all__ = ["ENDINGS", "TRAIN", "VALIDATION", "images_in", "read", "recognises", "visible"]

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
"""Endings of the names of image files."""
TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "test", "testing")
"""Names of the validation part, in order of precedence."""
SHOWN = 5
"""Largest number of names in a message."""
OF_THE_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")


def recognises(data: str) -> bool:
    """Whether this is a directory with image files in folders."""
    place = Path(data)
    return place.is_dir() and any(
        _has_images(each) or any(map(_has_images, _folders(each))) for each in _folders(place)
    )


def read(data: str, reading: Reading) -> Parts:
    """List the image files; none is opened.

    Raises:
        UserError: there are no classes or no training images, or a class has validation images only.
    """
    place = Path(data)
    by_name = {each.name.lower(): each for each in _folders(place)}
    train = next((by_name[name] for name in TRAIN if name in by_name), None)
    if train is None and by_name and by_name.keys() <= set(VALIDATION):
        raise UserError(
            f"{reading.flag}: {place}: must hold train/ beside {_some([f'{e}/' for e in by_name])}, got none."
        )
    if train is None:
        classes = _classes(place, reading)
        return Parts(name=place.resolve().name, train=_part(place, classes, reading), classes=classes)
    found = [by_name[name] for name in VALIDATION if name in by_name]
    if len(found) > 1:
        reading.progress(
            f"{place}: {found[0].name}/ is the validation part; {_some([f'{e.name}/' for e in found[1:]])} is not used"
        )
    classes = _classes(train, reading)
    validation = _part(found[0], classes, reading) if found else None
    return Parts(
        name=place.resolve().name, train=_part(train, classes, reading), validation=validation, classes=classes
    )


def visible(name: str) -> bool:
    """Whether a file or folder is the user's, not one that a system leaves behind."""
    return not name.startswith(".") and name.lower() not in OF_THE_SYSTEM


def images_in(place: Path) -> list[Path]:
    """List the image files of a folder, in the order of their names."""
    return sorted(path for path in _visible_in(place) if path.suffix.lower() in ENDINGS and path.is_file())


def _visible_in(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if visible(path.name)]


def _images_of_class(place: Path) -> list[Path]:
    """List the image files of a folder, and those of folders in it."""
    return images_in(place) + [path for folder in _folders(place) for path in images_in(folder)]


def _folders(place: Path) -> list[Path]:
    return sorted(each for each in _visible_in(place) if each.is_dir())


def _has_images(place: Path) -> bool:
    return any(images_in(each) for each in (place, *_folders(place)))


def _classes(place: Path, reading: Reading) -> tuple[str, ...]:
    """Return the names of the folders that hold images."""
    folders = _folders(place)
    classes = tuple(each.name for each in folders if _has_images(each))
    if empty := [each.name for each in folders if each.name not in classes]:
        reading.progress(f"{place}: no images in {_some([f'{name}/' for name in empty])}; left out")
    if not classes:
        raise UserError(
            f"{reading.flag}: {place}: must hold a folder of images for each class, got "
            f"{counted(len(folders), 'folder')} without images."
        )
    if len(classes) == 1 and len([each for each in _folders(place / classes[0]) if images_in(each)]) > 1:
        raise UserError(
            f"{reading.flag}: {place}: must hold a folder of images for each class, got {classes[0]}/ alone. If its "
            f"folders are the classes, give {place / classes[0]}."
        )
    return classes


def _part(place: Path, classes: Sequence[str], reading: Reading) -> Part:
    for folder in _folders(place):
        if folder.name not in classes and _has_images(folder):
            raise UserError(
                f"{reading.flag}: {folder}: must be a class that has training images, got none of that name. "
                f"There are {_some(classes)}."
            )
    files, labels = list[Path](), list[int]()
    for label, name in enumerate(classes):
        folder = place / name
        found = _images_of_class(folder) if folder.is_dir() else []
        files += found
        labels += [label] * len(found)
    _tell_others(place, files, reading.progress)
    return Part(
        count=len(files),
        labels=np.array(labels, dtype=np.int64),
        images=lambda rows: (files[row] for row in rows.tolist()),
        called=lambda row: str(files[row]),
        sources=tuple(files),
        are_files=True,
    )


def _tell_others(place: Path, files: Sequence[Path], progress: Callable[[str], None]) -> None:
    """Report the files that are not images."""
    known, folders = set(files), _folders(place)
    within = [place, *folders, *(inner for folder in folders for inner in _folders(folder))]
    others = sorted(path.name for each in within for path in _visible_in(each) if path not in known and path.is_file())
    if others:
        what = counted(len(others), "file")
        progress(f"{place}: left out {what}, not images of a class: {_some(others)}")


def _some(names: Sequence[str]) -> str:
    return listing(names if len(names) <= SHOWN else [*names[:SHOWN], f"{len(names) - SHOWN} more"])
