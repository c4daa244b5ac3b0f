"""Decode image files to bytes of pixels, in threads."""

from __future__ import annotations

import io
import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from steadynorm.lab.data.parts import Part, Reading
from steadynorm.lab.data.storage import room
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.words import counted, listing

__all__ = ["FORMATS", "decode", "open_image", "plain", "upright"]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Formats by Pillow's names; some of its others start programs."""
_WINDOW = 512
_PIECE = 32
_TOLD_EVERY = 10_000
_ORIENTATION = 0x0112
GRAY = ("1", "L", "LA", "La")
DEEP = ("I", "I;16", "I;16B", "I;16L")
TRANSPARENT = "transparent pixels, which were laid on white"
SHADES = "16 bits for a pixel, of which 8 were kept"


def decode(
    part: Part,
    rows: NDArray[np.int64],
    reading: Reading,
    *,
    what: str,
    like: tuple[int, int, int] | None = None,
    folder: Path | None = None,
) -> torch.Tensor:
    """Decode the images of some rows.

    Args:
        part: part of the data set.
        rows: int64 of shape (M,), in rising order.
        reading: settings, with the requested size.
        what: name of the images, for messages.
        like: required height, width and channels; None takes the size of the first image, and three channels if any
            image has three.
        folder: folder for a file with images that do not fit into memory.

    Returns:
        uint8 of shape (M, H, W, C).

    Raises:
        UserError: an image cannot be read, or differs in size from the others.
    """
    size = reading.image_size
    if part.pixels is not None and size in (None, part.pixels.shape[1:3]) and like in (None, part.pixels.shape[1:]):
        return _as_tensor(part.pixels if len(rows) == part.count else part.pixels[rows])
    made: torch.Tensor | None = None if like is None else room((len(rows), *like), folder)
    done, notes, found = 0, Counter[str](), part.images(rows)
    with ThreadPoolExecutor() as pool:
        while window := list(itertools.islice(found, _WINDOW)):
            names = [part.called(row) for row in rows[done : done + len(window)].tolist()]
            arrays = []
            pieces = [slice(start, start + _PIECE) for start in range(0, len(window), _PIECE)]
            some = pool.map(
                partial(_decoded_some, size=size), [window[each] for each in pieces], [names[each] for each in pieces]
            )
            for array, told in itertools.chain.from_iterable(some):
                arrays.append(array)
                notes.update(told)
            _check_sizes(arrays, names, None if made is None else (made.shape[1], made.shape[2]), reading, what)
            made = _wide_enough(made, arrays, names, (len(rows), done), fixed=like is not None, folder=folder)
            for array in arrays:
                made[done].numpy()[:] = array
                done += 1
            if done // _TOLD_EVERY > (done - len(window)) // _TOLD_EVERY and done < len(rows):
                reading.progress(f"{what}: {done:,} of {len(rows):,} images decoded")
    for note, times in notes.items():
        reading.progress(f"{what}: {counted(times, 'image')} had {note}")
    assert made is not None and done == len(rows)
    return made


def _as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return an array's images, each as one block of memory."""
    with warnings.catch_warnings():
        # For a file that is mapped read-only; nothing here writes to images.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(pixels))


def _check_sizes(
    arrays: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    wanted: tuple[int, int] | None,
    reading: Reading,
    what: str,
) -> None:
    """Refuse images of several sizes, and list the sizes."""
    sizes = {array.shape[:2]: name for array, name in zip(reversed(arrays), reversed(names), strict=True)}
    others = sizes.keys() - {wanted or arrays[0].shape[:2]}
    if not others:
        return
    found = [f"{high} x {wide} ({Path(sizes[high, wide]).name})" for high, wide in sorted(sizes)]
    shown = listing(found if len(found) <= 4 else [*found[:3], f"{len(found) - 3} more"])
    must = f"{wanted[0]} x {wanted[1]} pixels as the training images" if wanted and what != "train" else "one size"
    raise UserError(
        f"{reading.flag}: images must be of {must}, got {shown}, height first. Give the size to make of them by "
        f"{reading.size_flag}."
    )


def _wide_enough(
    made: torch.Tensor | None,
    arrays: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    progress: tuple[int, int],
    *,
    fixed: bool,
    folder: Path | None,
) -> torch.Tensor:
    """Return room for all images, with three channels if any of them has; what is done already is in it."""
    channels = max(array.shape[2] for array in arrays)
    if made is not None and made.shape[3] >= channels:
        return made
    if fixed:
        name = next(name for array, name in zip(arrays, names, strict=True) if array.shape[2] == channels)
        raise UserError(f"{name}: must be gray as the training images are, got colours. Make all of one kind.")
    count, done = progress
    larger = room((count, *arrays[0].shape[:2], channels), folder)
    if made is not None:
        larger[:done] = made[:done]
    return larger


def _decoded_some(
    raws: Sequence[Any], names: Sequence[str], *, size: tuple[int, int] | None
) -> list[tuple[NDArray[np.uint8], list[str]]]:
    return [_decoded(raw, name, size=size) for raw, name in zip(raws, names, strict=True)]


def _decoded(raw: Any, name: str, *, size: tuple[int, int] | None) -> tuple[NDArray[np.uint8], list[str]]:  # noqa: ANN401
    """Decode an image to (H, W, C), and say what was done to it beyond that."""
    if isinstance(raw, np.ndarray):
        if size is None or raw.shape[:2] == size:
            return raw, []
        raw = Image.fromarray(raw[..., 0] if raw.shape[2] == 1 else raw)
    try:
        with open_image(raw) as file:
            image, told = plain(upright(file))
            if size is not None and (image.height, image.width) != size:
                image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
            array = np.asarray(image)
    # Pillow reports damaged image files with any of these.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name}: must be an image that can be read, got {error}. Replace it or take it out."
        ) from error
    return array[..., None] if array.ndim == 2 else array, told


def open_image(raw: Any) -> Image.Image:  # noqa: ANN401 (a path, bytes, or an image already)
    """Open an image file, or the bytes of one, without reading its pixels.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no image of :data:`FORMATS`.
    """
    if isinstance(raw, Image.Image):
        return raw
    if raw is None or raw == b"":
        raise ValueError("no bytes")
    if not isinstance(raw, bytes | Path):
        raise ValueError(f"{type(raw).__name__}, which is neither pixels nor an image file")
    try:
        return Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from error


def upright(image: Image.Image) -> Image.Image:
    """Turn a photograph as its camera recorded; return other images unchanged."""
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def plain(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert pixels of any kind to one or three channels of bytes."""
    told = list[str]()
    if image.mode in DEEP:
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"pixels from {deep.min()} to {deep.max()}")
        return Image.fromarray((deep // 256).astype(np.uint8)), [SHADES]
    if image.mode == "F":
        raise ValueError("floats for pixels")
    if image.has_transparency_data:
        full = image.convert("RGBA")
        if full.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator] # one band's
            ground = Image.new("RGBA", full.size, "white")
            full, told = Image.alpha_composite(ground, full), [TRANSPARENT]
        return full.convert("L" if image.mode in GRAY else "RGB"), told
    kept = image.mode in ("L", "RGB")  # a conversion would copy the pixels
    return image if kept else image.convert("L" if image.mode in GRAY else "RGB"), told
