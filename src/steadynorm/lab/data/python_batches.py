"""CIFAR-10 as its author published it: ``cifar-10-batches-py``, six pickles of a dict each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from steadynorm.lab.data.images import CLASS_COUNT, SIZE, Images
from steadynorm.lab.data.pickled import read_pickled
from steadynorm.reporting.failure import UserError

__all__ = ["read_batches"]

_BYTES = 3 * SIZE * SIZE


def read_batches(paths: Sequence[Path]) -> Images:
    """Read some batch files, in the order given, without running what a pickle may ask for.

    Args:
        paths: files with a dict that has ``data``, uint8 of shape (rows, 3072) with all of red before green
            before blue, and ``labels``, whole numbers from 0 to 9; the keys may be text or bytes.

    Raises:
        UserError: a file cannot be read, holds something else, or asks for code to be run.
    """
    parts = [_read_batch(path) for path in paths]
    planes = torch.cat([data for data, _ in parts]).view(-1, 3, SIZE, SIZE)
    return Images(
        pixels=planes.contiguous(memory_format=torch.channels_last), labels=torch.cat([labels for _, labels in parts])
    )


def _read_batch(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        batch = read_pickled(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: must be readable, got {error.strerror or error}. "
            "Complete cifar-10-batches-py, or download it again."
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: must be a batch of CIFAR-10, but {error}. Download it again.") from error
    fields = _text_keys(batch) if isinstance(batch, dict) else {}
    data, labels = fields.get("data"), fields.get("labels")
    if not (isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == _BYTES and isinstance(labels, list)):
        raise UserError(
            f"{path}: must hold data of shape (rows, {_BYTES}) and a list of labels, got a "
            f"{type(batch).__name__} with {', '.join(fields) or 'neither'}. Download it again."
        )
    if len(labels) != len(data) or not all(type(label) is int and 0 <= label < CLASS_COUNT for label in labels):
        raise UserError(
            f"{path}: must hold a label from 0 to {CLASS_COUNT - 1} for each of its {len(data)} images, "
            f"got others. Download it again."
        )
    return torch.from_numpy(data.copy()), torch.tensor(labels, dtype=torch.int64)


def _text_keys(batch: dict[object, object]) -> dict[str, object]:
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in batch.items()}
