"""The handwritten digits that come with scikit-learn, enlarged to the size of MNIST's.

1,797 images of 8 x 8 pixels in 17 shades, written by 43 people: the test half of the UCI machine learning
repository's "Optical recognition of handwritten digits" (Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.images import Dataset, Images, hold_out

__all__ = ["enlarge", "make_digits"]

SIZE = 28
SHADES = 16  # the darkest pixel's value; the lightest is 0
TEST_COUNT = 397
SEED_OF_SPLIT = 0


def make_digits() -> Dataset:
    """Return the digits: 1,400 training and 397 test images of 28 x 28 gray pixels, ink bright, in ten classes.

    The test images are drawn at random from all, so most of their writers are known from training: accuracies are
    higher than for people who were never seen.
    """
    from sklearn.datasets import load_digits  # costs half a second, and only these data need it

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(enlarge(images.reshape(-1, 8, 8).astype(np.int64)))
    every = Images(pixels=pixels.unsqueeze(1), labels=torch.from_numpy(labels.astype(np.int64)))
    train, test = hold_out(every, fraction=TEST_COUNT / len(every), seed=SEED_OF_SPLIT)
    shares = train.pixels.double() / 255
    return Dataset(
        name="digits",
        train=train,
        validation=test,
        classes=tuple("0123456789"),
        mean=(shares.mean().item(),),
        std=(shares.std(correction=0).item(),),
    )


def enlarge(images: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Enlarge (N, 8, 8) shades from 0 to 16 to (N, 28, 28) bytes from 0 to 255, bilinearly.

    Pixels are squares with their values at the centres, and the outermost values go on to the border. Weights are
    whole numbers over 56, so that no rounding depends on the machine.
    """
    weights = _weights(images.shape[-1])
    whole = weights.sum(axis=1)[0] ** 2 * SHADES
    sums = weights @ images @ weights.T
    rounded: NDArray[np.uint8] = ((sums * 255 * 2 + whole) // (2 * whole)).astype(np.uint8)
    return rounded


def _weights(size: int) -> NDArray[np.int64]:
    """Return whole-number weights of linear interpolation, shape (28, size); rows sum to twice 28."""
    unit = 2 * SIZE
    weights = np.zeros((SIZE, size), dtype=np.int64)
    for row in range(SIZE):
        place = (2 * row + 1) * size - SIZE  # of the new pixel's centre among the old centres, in 1 / unit
        left, rest = divmod(place, unit)
        weights[row, max(left, 0)] += unit - rest
        weights[row, min(left + 1, size - 1)] += rest
    return weights
