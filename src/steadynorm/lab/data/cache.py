"""Decoded images kept on the disk, so that a data set is decoded once.

Each split is one safetensors file in ``$XDG_CACHE_HOME/steadynorm`` (``~/.cache/steadynorm`` where that is
not set). Its name holds a hash of the source files' content, so other source files never meet a wrong cache;
what it holds is checked against a checksum on every use. A cache is a convenience: whatever is wrong with it
is reported and costs time, never the result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steadynorm.lab.data.images import Images
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import atomic_path

__all__ = ["cached_images"]

# Part of the hash in the file name: changes when the meaning of the files does.
_FORMAT = b"steadynorm images 1"


def cached_images(
    name: str, decode: Callable[[], Images], *, sources: Sequence[Path], progress: Callable[[str], None]
) -> Images:
    """Give what ``decode`` gives, from the cache where it is there and whole.

    Args:
        name: what the images are, as the beginning of a file name.
        decode: called at most once, and only when the cache cannot be used.
        sources: the files that ``decode`` reads, in order; all of them are read to tell whether they changed.
        progress: told when the cache is damaged, unreadable or unwritable.

    Raises:
        UserError: a source file cannot be read.
    """
    key = _content_hash(sources)
    try:
        path = _cache_directory() / f"{name}-{key[:16]}.safetensors"
    except RuntimeError:
        progress("cache: there is no home directory to keep decoded images in. Set XDG_CACHE_HOME to avoid this.")
        return decode()
    images = _read(path, progress)
    if images is None:
        images = decode()
        _write(path, images, progress)
    return images


def _cache_directory() -> Path:
    """Give the directory for this package's caches; it need not exist."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The convention asks to ignore relative paths: they would mean another place in every working directory.
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "steadynorm"


def _content_hash(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256(_FORMAT)
    for source in sources:
        try:
            with source.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"{source}: must be readable, got {error.strerror or error}. Check it, or download it again."
            ) from error
    return digest.hexdigest()


def _checksum(rows: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(repr((tuple(rows.shape), tuple(labels.shape))).encode())
    digest.update(rows.numpy().data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()


def _read(path: Path, progress: Callable[[str], None]) -> Images | None:
    """Give the cached images, or None where there are none that can be trusted."""
    try:
        with safe_open(path, framework="pt") as stored:
            # Copied, because a file mapped into memory could change under the experiment.
            rows, labels = (stored.get_tensor(key).clone() for key in ("pixels", "labels"))
            checksum = (stored.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        progress(f"cache: {path} cannot be read ({_one_line(error)}). Decoding the images again.")
        return None
    if rows.dtype != torch.uint8 or labels.dtype != torch.int64 or checksum != _checksum(rows, labels):
        progress(f"cache: {path} is damaged, its content does not match its checksum. Decoding the images again.")
        return None
    return Images.of_rows(rows, labels)


def _write(path: Path, images: Images, progress: Callable[[str], None]) -> None:
    rows = images.rows.contiguous()
    try:
        with atomic_path(path) as temporary:
            save_file({"pixels": rows, "labels": images.labels}, temporary, {"sha256": _checksum(rows, images.labels)})
    except (OSError, SafetensorError) as error:
        progress(
            f"cache: {path} cannot be written ({_one_line(error)}). The images will be decoded "
            "again next time; set XDG_CACHE_HOME to a directory with space to avoid this."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
