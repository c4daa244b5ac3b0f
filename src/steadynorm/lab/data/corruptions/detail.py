"""Corruptions that remove detail; pixels as described in ``noise``, and nothing is random."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["jpeg_compression", "pixelate"]

Array = NDArray[np.float64]


def pixelate(pixels: Array, random: np.random.Generator, size: int) -> Array:
    """Shrink so that 32 pixels become ``size``, in height and width, and enlarge again, by averaging over boxes."""
    from PIL import Image  # comes with the extra `lab`

    box, (height, width) = Image.Resampling.BOX, pixels.shape[1:3]
    small = (max(1, width * size // 32), max(1, height * size // 32))
    return _each(pixels, lambda picture: picture.resize(small, box).resize((width, height), box))


def jpeg_compression(pixels: Array, random: np.random.Generator, quality: int) -> Array:
    """Write and read as JPEG of the quality given, 1 to 95, with halved resolution of colour where there is colour."""
    from PIL import Image

    def through_jpeg(picture: Any) -> Any:  # noqa: ANN401 - Pillow's types are not known to the checker
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(pixels, through_jpeg)


def _each(pixels: Array, change: Callable[[Any], Any]) -> Array:
    """Change image by image, as Pillow's images of bytes, of one channel or of three."""
    from PIL import Image

    pictures = np.rint(pixels * 255).astype(np.uint8)
    pictures = pictures[..., 0] if pixels.shape[3] == 1 else pictures
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])
    return changed.reshape(pixels.shape) / 255.0
