"""Images and labels from Parquet files in the layout of the Hugging Face hub, decoded in threads."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from steadynorm.lab.data.images import CLASS_COUNT, SIZE, Images
from steadynorm.reporting.failure import UserError

__all__ = ["read_parquet"]

_CHUNK = 500
_PROGRESS_EVERY = 10_000
_IMAGE_COLUMNS = ("img", "image")


def read_parquet(paths: Sequence[Path], *, what: str, progress: Callable[[str], None]) -> Images:
    """Decode all rows of some files, in the order given.

    Args:
        paths: files with a column ``img`` or ``image``, a struct whose field ``bytes`` holds a PNG or JPEG
            file of 32 x 32 RGB pixels, and a column ``label`` of whole numbers from 0 to 9.
        what: how progress lines name the images.
        progress: told after every 10,000 images.

    Raises:
        UserError: a file cannot be read, or a row does not hold what it must.
    """
    chunks = [chunk for path in paths for chunk in _chunks(path)]
    if not chunks:
        raise UserError(f"{paths[0]}: must hold images, got no rows. Download it again.")
    rows: list[NDArray[np.uint8]] = []
    done = 0
    with ThreadPoolExecutor() as pool:
        for decoded in pool.map(_decode_chunk, chunks):
            rows.append(decoded)
            before, done = done, done + len(decoded)
            if done // _PROGRESS_EVERY > before // _PROGRESS_EVERY:
                progress(f"{what}: {done:,} images decoded")
    labels = np.concatenate([chunk.labels for chunk in chunks])
    return Images.of_rows(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(labels))


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Some consecutive rows of a file, still encoded."""

    path: Path
    first: int
    encoded: list[bytes | None]
    labels: NDArray[np.int64]


def _chunks(path: Path) -> Iterator[_Chunk]:
    first = 0
    try:
        with pq.ParquetFile(path) as file:
            column = _check_columns(file.schema_arrow, path)
            for batch in file.iter_batches(_CHUNK, columns=[f"{column}.bytes", "label"]):
                encoded = batch.column(column).field("bytes").to_pylist()
                yield _Chunk(
                    path=path, first=first, encoded=encoded, labels=_labels(batch.column("label"), path, first)
                )
                first += len(encoded)
    except (pa.ArrowException, UnicodeError, OSError) as error:  # names that are no UTF-8 among them
        raise UserError(f"{path}: must be a whole Parquet file, got {error}. Download it again.") from error


def _check_columns(schema: Any, path: Path) -> str:  # noqa: ANN401 - pyarrow has no type annotations
    """Give the name of the column with the images."""
    for name in _IMAGE_COLUMNS:
        if name in schema.names and "label" in schema.names:
            image, label = schema.field(name).type, schema.field("label").type
            if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 and pa.types.is_integer(label):
                return name
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UserError(
        f"{path}: must have a column img with encoded images (a struct with a field bytes) and a column "
        f"label with whole numbers, got {columns}. Give files in the layout of the Hugging Face hub."
    )


def _labels(column: Any, path: Path, first: int) -> NDArray[np.int64]:  # noqa: ANN401
    values = column.to_pylist()
    for row, value in enumerate(values, first):
        if value is None or not 0 <= value < CLASS_COUNT:
            raise UserError(f"{path}: row {row}: label must be 0 to {CLASS_COUNT - 1}, got {value}. Download it again.")
    return np.array(values, dtype=np.int64)


def _decode_chunk(chunk: _Chunk) -> NDArray[np.uint8]:
    """Decode to shape (rows, 32, 32, 3)."""
    pixels = np.empty((len(chunk.encoded), SIZE, SIZE, 3), dtype=np.uint8)
    for offset, encoded in enumerate(chunk.encoded):
        try:
            pixels[offset] = _decode(encoded)
        # Pillow reports damaged image files with any of these.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{chunk.path}: row {chunk.first + offset}: must be an image of {SIZE} x {SIZE} RGB pixels, "
                f"got {error}. Download it again."
            ) from error
    return pixels


def _decode(encoded: bytes | None) -> NDArray[np.uint8]:
    if encoded is None:
        raise ValueError("no bytes")
    try:
        image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:
        raise ValueError("bytes of neither a PNG nor a JPEG file") from error
    with image:
        # Known from the head of the file, so that a huge image is refused before it is decoded.
        if image.size != (SIZE, SIZE) or image.mode != "RGB":
            raise ValueError(f"{image.width} x {image.height} pixels of kind {image.mode}")
        return np.asarray(image)
