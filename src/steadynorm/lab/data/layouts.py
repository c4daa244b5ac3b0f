"""Layouts of data on the disk: how each one is recognised and read."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadynorm.lab.data.parts import Parts, Reading
from steadynorm.reporting.failure import UserError, reason_of
from steadynorm.reporting.words import counted

__all__ = ["LAYOUTS", "Layout", "layout_of", "open_parts"]


@dataclass(frozen=True)
class Layout:
    """A layout, and the module of this package that reads it by ``recognises(data)`` and ``read(data, reading)``."""

    module: str
    told: str
    """Short name, for messages."""
    has_columns: bool = True
    """Whether --columns can name its images and labels."""

    def recognises(self, data: str) -> bool:
        """Whether the data have this layout."""
        return bool(self._module().recognises(data))

    def read(self, data: str, reading: Reading) -> Parts:
        """Find its parts, without decoding images.

        Raises:
            UserError: the data are invalid.
        """
        found: Parts = self._module().read(data, reading)
        return found

    def _module(self) -> Any:  # noqa: ANN401 (a module)
        return importlib.import_module(f"steadynorm.lab.data.{self.module}")


LAYOUTS: Sequence[Layout] = (
    Layout("user_function", "PACKAGE.MODULE:FUNCTION", has_columns=False),
    Layout("archives", "FILE.npz of arrays"),
    Layout("python_batches", "CIFAR's python version, a folder or FILE.tar.gz"),
    Layout("idx", "MNIST's four files", has_columns=False),
    Layout("saved", "DIR of Hugging Face's save_to_disk"),
    Layout(
        "class_folders",
        "DIR with a folder of images for each class, below train/ and val/ or without them",
        has_columns=False,
    ),
    Layout("parquet", "Parquet, a file or DIR of some"),
    Layout("hub", "OWNER/NAME on the Hugging Face hub"),
)
"""All layouts, in the order in which they are tried."""


def layout_of(data: str) -> Layout | None:
    """Return the layout of data, or None."""
    return next((layout for layout in LAYOUTS if layout.recognises(data)), None)


def open_parts(data: str, reading: Reading, *, names: Sequence[str] = ()) -> Parts:
    """Find the parts of data in any layout.

    Args:
        data: a path or a name.
        reading: settings.
        names: names of data sets, for messages.

    Raises:
        UserError: the data have no known layout, or are invalid.
    """
    layout = layout_of(data)
    if layout is None:
        read = "; ".join([*([", ".join(names)] if names else []), *(layout.told for layout in LAYOUTS)])
        raise UserError(f"{reading.flag}: must be one of: {read}. Got {_found(data)}.")
    if reading.columns is not None and not layout.has_columns:
        raise UserError(f"--columns: names columns or arrays, which {data} ({layout.told}) does not have. Drop it.")
    try:
        return layout.read(data, reading)
    except OSError as error:
        raise UserError(f"{reading.flag}: {error.filename or data}: {reason_of(error)}.") from error


def _found(data: str) -> str:
    """Describe data of an unknown layout."""
    place = Path(data)
    if place.is_dir():
        within = sorted(each.name + "/" * each.is_dir() for each in place.iterdir())
        shown = ", ".join(within[:5]) + (f" and {counted(len(within) - 5, 'more')[:-1]}" if len(within) > 5 else "")
        return f"the directory {data}, which holds {shown or 'nothing'}"
    return f"the file {data}" if place.exists() else f"{data}, which is no file or directory"
