"""CIFAR-10-C as its authors published it: the test images of CIFAR-10, corrupted, in NumPy files.

Source: Hendrycks & Dietterich 2019, arXiv 1903.12261; files from https://zenodo.org/records/2535967.
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.images import CLASS_COUNT, SIZE, Images
from steadynorm.reporting.failure import UserError

__all__ = ["CIFAR10_C", "load_cifar10_c"]

CIFAR10_C = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("fog", "frost", "snow", "spatter", "brightness", "contrast", "saturate"),
    *("elastic_transform", "jpeg_compression", "pixelate"),
)
"""The published corruptions."""
SEVERITY_COUNT = 5
COUNT = 10_000
"""Number of images of one severity."""
FOLDER = "CIFAR-10-C"


def load_cifar10_c(data_dir: Path, name: str, *, severity: int) -> Images | None:
    """Load one corruption at one severity, if its file exists.

    Args:
        data_dir: a directory with ``<name>.npy``, uint8 of shape (50000, 32, 32, 3), the five severities one
            after the other, and ``labels.npy``, whole numbers of shape (50000,); both in it or in its
            subdirectory ``CIFAR-10-C``. Only the requested part is read.
        name: one of :data:`CIFAR10_C`.
        severity: 1 to 5.

    Returns:
        10,000 images in the files' order, which is that of the original test set and need not be that of other
        copies of CIFAR-10; their labels are those of ``labels.npy``. None without a ``<name>.npy``.

    Raises:
        UserError: a file is damaged or holds something else, or the labels are missing.
        ValueError: the name or the severity is unknown.
    """
    if name not in CIFAR10_C:
        raise ValueError(f"load_cifar10_c: name must be one of {', '.join(CIFAR10_C)}, got {name!r}.")
    if not 1 <= severity <= SEVERITY_COUNT:
        raise ValueError(f"load_cifar10_c: severity must be 1 to {SEVERITY_COUNT}, got {severity}.")
    paths = (folder / f"{name}.npy" for folder in (data_dir, data_dir / FOLDER))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    part = slice((severity - 1) * COUNT, severity * COUNT)
    # Copied, because a file mapped into memory could change under the experiment.
    rows = np.array(_mapped(path, (SIZE, SIZE, 3), ("uint8",))[part], order="C")
    labels = _labels(path.with_name("labels.npy"))[part]
    return Images.of_rows(torch.from_numpy(rows), torch.from_numpy(labels))


def _labels(path: Path) -> NDArray[np.int64]:
    labels = _mapped(path, (), ("uint8", "int32", "int64"))
    if labels.min() < 0 or labels.max() >= CLASS_COUNT:
        raise UserError(
            f"{path}: labels must be 0 to {CLASS_COUNT - 1}, got {labels.min()} to {labels.max()}. "
            "Give the labels.npy of CIFAR-10-C."
        )
    return labels.astype(np.int64)


def _mapped(path: Path, shape: tuple[int, ...], types: tuple[str, ...]) -> NDArray[Any]:
    """Map a file with numbers of one of some types and rows of the shape given; nothing in it is unpickled."""
    try:
        content = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UserError(f"{path}: must be there, got no such file. Give all files of CIFAR-10-C.") from error
    # NumPy reports truncated and damaged files with any of the last five.
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, TokenError) as error:
        raise UserError(f"{path}: must be a complete .npy file of numbers, got {error}. Download it again.") from error
    expected = (SEVERITY_COUNT * COUNT, *shape)
    if content.shape != expected or content.dtype.name not in types:
        raise UserError(
            f"{path}: must be {' or '.join(types)} of shape {expected}, got {content.dtype} {content.shape}. "
            "Give the files of CIFAR-10-C."
        )
    return content
