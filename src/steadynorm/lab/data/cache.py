"""Cache of decoded images on the disk, so that a data set is decoded once.

The pixels of each split are one safetensors file in ``$XDG_CACHE_HOME/steadynorm`` (``~/.cache/steadynorm`` where that
is not set). Its name holds a hash of the source files' content, so other source files have another cache; a checksum of
its content is verified on every use. Images that do not fit into memory are mapped. A cache is a convenience: any fault
of it is reported and costs time, never the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steadynorm.lab.data.storage import fits
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import atomic_path

__all__ = ["cached_rows"]

# Part of the hash in the file name: changes when the meaning of the files does.
_FORMAT = b"steadynorm images 3"
_KEY = "pixels"


def cached_rows(
    name: str,
    decode: Callable[[Path | None], Tensor],
    *,
    sources: Sequence[Path],
    detail: bytes,
    progress: Callable[[str], None],
) -> Tensor:
    """Return the result of ``decode``, from the cache if that is present and intact.

    Args:
        name: beginning of the file name.
        decode: called at most once, and only when the cache cannot be used, with a folder for images that do not fit
            into memory, or None; gives uint8 of shape (N, H, W, C).
        sources: the files that ``decode`` reads, in order; all of them are read to detect changes.
        detail: settings of the decoding.
        progress: receives a note if the cache is damaged, unreadable or unwritable.

    Raises:
        UserError: a source file cannot be read.
    """
    key = _content_hash(sources, detail)
    try:
        path = _cache_directory() / f"{re.sub('[^A-Za-z0-9_-]', '_', name)}-{key[:16]}.safetensors"
    except RuntimeError:
        progress("cache: there is no home directory to keep decoded images in. Set XDG_CACHE_HOME to avoid this.")
        return decode(None)
    rows = _read(path, progress)
    if rows is None:
        rows = _written(path, decode(_made(path.parent)), progress)
    return rows


def _made(folder: Path) -> Path | None:
    """Make a folder; return None if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _cache_directory() -> Path:
    """Return the directory for this package's caches; it need not exist."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The convention ignores relative paths, which would differ in every working directory.
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "steadynorm"


def _content_hash(sources: Sequence[Path], detail: bytes) -> str:
    digest = hashlib.sha256(_FORMAT)
    digest.update(hashlib.sha256(detail).digest())
    for source in sources:
        try:
            with source.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"{source}: must be readable, got {error.strerror or error}. Check it, or download it again."
            ) from error
    return digest.hexdigest()


def _checksum(rows: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(rows.shape)).encode())
    digest.update(rows.numpy().data)
    return digest.hexdigest()


def _read(path: Path, progress: Callable[[str], None]) -> Tensor | None:
    """Return the cached pixels, or None if there are none or they are damaged."""
    try:
        with safe_open(path, framework="pt") as stored:
            shape, checksum = stored.get_slice(_KEY).get_shape(), (stored.metadata() or {}).get("sha256")
            # Copied if they fit, because a file mapped into memory could change under the experiment.
            rows = stored.get_tensor(_KEY).clone() if fits(shape) else _mapped(path, shape)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        progress(f"cache: {path} cannot be read ({_one_line(error)}). Decoding the images again.")
        return None
    if rows.dtype != torch.uint8 or checksum != _checksum(rows):
        progress(f"cache: {path} is damaged, its content does not match its checksum. Decoding the images again.")
        return None
    return rows


def _mapped(path: Path, shape: Sequence[int]) -> Tensor:
    """Map the only tensor of a file into memory, copy-on-write."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=tuple(shape)))


def _written(path: Path, rows: Tensor, progress: Callable[[str], None]) -> Tensor:
    """Write pixels into the cache; return them mapped from there if they do not fit into memory."""
    rows = rows.contiguous()
    stored = {"dtype": "U8", "shape": list(rows.shape), "data_offsets": [0, rows.numel()]}
    head = json.dumps({"__metadata__": {"sha256": _checksum(rows)}, _KEY: stored}).encode()
    head += b" " * (-len(head) % 8)
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)  # as in safetensors
            file.write(rows.numpy().data)
    except OSError as error:
        progress(
            f"cache: {path} cannot be written ({_one_line(error)}). The images will be decoded "
            "again next time; set XDG_CACHE_HOME to a directory with space to avoid this."
        )
        return rows
    return rows if fits(rows.shape) else _mapped(path, rows.shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
