import functools
import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from steadynorm.lab.data.digits import enlarge, make_digits
from steadynorm.lab.data.images import Dataset


@functools.cache
def source() -> Any:
    from sklearn.datasets import load_digits  # takes a second, which only these tests need

    return load_digits()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return make_digits()


def test_enlarging_is_bilinear_and_rounded_to_the_nearest_byte() -> None:
    images = torch.from_numpy(source().images[:50]).unsqueeze(1)
    wanted = torch.nn.functional.interpolate(images, size=28, mode="bilinear", antialias=False) * 255 / 16
    found = enlarge(source().images[:50].astype(np.int64))
    assert np.abs(found - wanted.squeeze(1).numpy()).max() <= 0.5 + 1e-9


def test_the_shades_0_and_16_become_the_bytes_0_and_255() -> None:
    halves = np.zeros((1, 8, 8), dtype=np.int64)
    halves[:, 4:] = 16
    found = enlarge(halves)[0]
    assert (found[:12] == 0).all()
    assert (found[16:] == 255).all()
    # Centres of the four rows between, among those of the eight: 3 + 1/14, 3 + 5/14, 3 + 9/14, 3 + 13/14.
    assert found[12:16, 0].tolist() == [round(255 * part / 14) for part in (1, 5, 9, 13)]


def test_half_a_byte_is_rounded_up() -> None:
    flat = np.full((1, 8, 8), 8, dtype=np.int64)  # 127.5
    assert (enlarge(flat) == 128).all()


def test_every_digit_is_in_one_split(digits: Dataset) -> None:
    assert (len(digits.train), len(digits.validation)) == (1400, 397)
    assert digits.train.pixels.shape[1:] == (1, 28, 28)
    wanted = enlarge(source().images.astype(np.int64)).reshape(-1, 784)
    both = [np.hstack([part.pixels.flatten(1), part.labels[:, None]]) for part in (digits.train, digits.validation)]
    rows = np.vstack(both)
    order = [np.lexsort(table.T) for table in (rows, np.hstack([wanted, source().target[:, None]]))]
    assert (rows[order[0]] == np.hstack([wanted, source().target[:, None]])[order[1]]).all()


def test_the_split_is_drawn_over_the_whole_and_always_the_same(digits: Dataset) -> None:
    assert digits.validation.labels[:12].tolist() != source().target[:12].tolist()
    assert digits.validation.labels.bincount().min() >= 30
    again = make_digits()
    for first, second in ((digits.train, again.train), (digits.validation, again.validation)):
        assert torch.equal(first.pixels, second.pixels)


def test_the_bytes_are_the_same_everywhere(digits: Dataset) -> None:
    digest = hashlib.sha256()
    for part in (digits.train, digits.validation):
        digest.update(part.pixels.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    assert digest.hexdigest() == "167adbe6c5ea751c65576c51c38e231fdbd8eae2fa7230cd7bc4804a52fa0ca9"


def test_mean_and_std_are_those_of_the_training_images(digits: Dataset) -> None:
    shares = digits.train.pixels.numpy() / 255
    assert digits.mean == pytest.approx((shares.mean(),), rel=1e-12)
    assert digits.std == pytest.approx((shares.std(),), rel=1e-12)
