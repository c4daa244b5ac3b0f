import io

import numpy as np
from PIL import Image

from steadynorm.lab.data.corruptions.detail import jpeg_compression, pixelate

BYTES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


def test_pixelate_averages_over_blocks():
    blocks = BYTES.astype(float).reshape(2, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    found = pixelate(BYTES / 255.0, None, 16) * 255
    np.testing.assert_allclose(found, blocks.repeat(2, axis=1).repeat(2, axis=2), atol=1)


def test_jpeg_compression_is_that_of_the_quality_asked_for():
    file = io.BytesIO()
    Image.fromarray(BYTES[1]).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file))
    assert np.array_equal(np.rint(jpeg_compression(BYTES / 255.0, None, 40)[1] * 255), expected)


def test_pixelate_shrinks_height_and_width_in_proportion():
    found = pixelate(BYTES[:, :24, :, :1] / 255.0, None, 16) * 255
    blocks = BYTES[:, :24, :, :1].astype(float).reshape(2, 12, 2, 16, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(found, blocks.repeat(2, axis=1).repeat(2, axis=2), atol=1)
