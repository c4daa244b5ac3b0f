"""Archives of arrays, as people have them and broken in one way each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steadynorm.lab.data import Dataset, load_dataset, storage
from steadynorm.reporting.failure import UserError

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (20, 5, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (20, 5, 7, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Save arrays and load them as a data set."""

    def make(how: dict[str, Any] | None = None, **arrays: Any) -> tuple[Dataset, list[str]]:
        np.savez_compressed(tmp_path / "a.npz", **arrays)
        said: list[str] = []
        return load_dataset(str(tmp_path / "a.npz"), progress=said.append, **(how or {})), said

    return make


def test_arrays_of_both_parts_are_named_as_keras_has_them(load):
    dataset, said = load(x_train=GRAY, y_train=LABELS.astype(np.uint8), x_test=GRAY[:6], y_test=LABELS[:6])
    assert np.array_equal(dataset.train.pixels[:, 0], GRAY)
    assert dataset.train.labels.tolist() == LABELS.tolist()
    assert np.array_equal(dataset.validation.pixels[:, 0], GRAY[:6])
    assert (dataset.classes, said) == (("0", "1", "2", "3"), [])


@pytest.mark.parametrize(
    "names", [("train_images", "train_labels", "val_images", "val_labels"), ("X_train", "y_train", "X_val", "y_val")]
)
def test_other_usual_names_are_found(load, names):
    dataset, _ = load(**dict(zip(names, (COLOUR, LABELS[:, None], COLOUR[:5], LABELS[:5, None]), strict=True)))
    assert (len(dataset.train), len(dataset.validation)) == (20, 5)


def test_of_arrays_of_one_part_a_share_is_held_out(load):
    dataset, said = load(x=GRAY, y=LABELS)
    assert (len(dataset.train), len(dataset.validation)) == (18, 2)
    assert said == ["the data have no validation part: 2 of 20 images are held out, in proportion to the classes"]


def test_names_can_be_given(load):
    dataset, _ = load({"columns": ("pixels", "target")}, pixels=GRAY, target=LABELS, x=COLOUR, y=LABELS)
    assert dataset.channels == 1


@pytest.mark.parametrize("images", [COLOUR, COLOUR.transpose(0, 3, 1, 2)])
def test_channels_come_first_or_last(load, images):
    dataset, _ = load(x_train=images, y_train=LABELS, x_test=images, y_test=LABELS)
    assert np.array_equal(dataset.train.rows, COLOUR)


def test_floats_become_bytes_and_that_is_said(load, tmp_path):
    dataset, said = load(x_train=GRAY / 255, y_train=LABELS, x_test=GRAY, y_test=LABELS)
    assert np.array_equal(dataset.train.pixels[:, 0], GRAY)
    assert said == [f"{tmp_path / 'a.npz'}: x_train: float64 in [0, 1], rounded to bytes of 256 shades"]


def test_labels_may_be_text(load):
    names = np.array(["owl", "ant"])[np.arange(20) % 2]
    dataset, _ = load(x_train=GRAY, y_train=names, x_test=GRAY, y_test=names)
    assert dataset.classes == ("ant", "owl")
    assert dataset.train.labels.tolist() == [1, 0] * 10


def test_images_are_resized(load):
    assert load({"image_size": (3, 4)}, x=COLOUR, y=LABELS)[0].image_size == (3, 4)


@pytest.mark.parametrize("images", [COLOUR, COLOUR.transpose(0, 3, 1, 2).copy(), GRAY / 255])
def test_arrays_that_do_not_fit_into_memory_are_read_row_by_row(load, images, monkeypatch):
    expected, _ = load({"validation_share": 0.3}, x=images, y=LABELS)
    monkeypatch.setattr(storage, "memory_limit", lambda: 500)
    monkeypatch.setattr(np, "load", _without(np.load, "x"))
    for _ in range(2):
        found, said = load({"validation_share": 0.3}, x=images, y=LABELS)
        assert torch.equal(found.train.pixels, expected.train.pixels)
        assert torch.equal(found.validation.pixels, expected.validation.pixels)
        assert found.train.labels.tolist() == expected.train.labels.tolist()
    assert ("rounded to bytes" in said[0]) == (images.dtype.kind == "f")


def _without(load, name):
    """Give an archive in which an array cannot be read whole."""

    class Archive(dict):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def loaded(raw, **how):
        with load(raw, **how) as file:
            return Archive({each: file[each] for each in file if each != name})

    return loaded


def test_what_is_wrong_with_such_arrays_is_named(load, monkeypatch):
    monkeypatch.setattr(storage, "memory_limit", lambda: 500)
    images = GRAY / 255
    images[4, 0, 0] = 7
    with pytest.raises(UserError, match=r"a\.npz: x: row 4: float64 must be floats in \[0, 1\], got .* to 7\."):
        load({"validation_share": 0.1}, x=images, y=LABELS)
    with pytest.raises(UserError, match=r"a\.npz: x: must be stored row by row \(in C order\)"):
        load(x=np.asfortranarray(GRAY), y=LABELS)


def test_digits_of_scikit_learn_are_read(load):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    dataset, _ = load(images=images.reshape(-1, 8, 8) / 16, labels=labels)
    assert (len(dataset.train), len(dataset.validation), dataset.image_size) == (1617, 180, (8, 8))
    assert dataset.classes == tuple("0123456789")
    share = torch.tensor(images).reshape(-1).mean() / 16
    assert dataset.mean[0] == pytest.approx(share.item(), abs=0.01)


BROKEN = {
    "no names that are usual": (
        {"pictures": GRAY, "y": LABELS},
        "must have arrays x and y or images and labels, alone or with _train and _test, got pictures and y.",
    ),
    "flat images": ({"x": GRAY.reshape(20, 35), "y": LABELS}, "must have shape (N, H, W), (N, H, W, C)"),
    "two channels": ({"x": COLOUR[..., :2], "y": LABELS}, "with 1 or 3 channels, got (20, 5, 7, 2)."),
    "either axis may be the channels": ({"x": COLOUR[:, :1], "y": LABELS}, "which axis has the channels"),
    "normalized": ({"x": GRAY / 100 - 1, "y": LABELS}, "float64 must be floats in [0, 1], got -1 to 1.55."),
    "not a number": (
        {"x": np.full((20, 5, 7), np.nan), "y": LABELS},
        "x: row 0: has NaN or infinite pixels. Leave such images out.",
    ),
    "large numbers": ({"x": GRAY.astype(np.int32) * 9, "y": LABELS}, "must be whole numbers from 0 to 255, got 0 to"),
    "words for pixels": ({"x": np.full((20, 5, 7), "a"), "y": LABELS}, "must be bytes (uint8) or floats in [0, 1]"),
    "fewer labels": ({"x": GRAY, "y": LABELS[:9]}, "must have one label for each of 20 images, got shape (9,)."),
    "one-hot": ({"x": GRAY, "y": np.eye(4)[LABELS]}, "These may be one-hot: give their argmax."),
    "labels that are floats": ({"x": GRAY, "y": LABELS / 1}, "labels must be whole numbers or text, got float64."),
    "a negative label": ({"x": GRAY, "y": LABELS - 1}, "row 0: label must be 0 to 2, got -1. A label of -1 means that"),
    "a label that is no class": ({"x": GRAY, "y": LABELS * 99}, "row 3: labels must be numbers of classes, counted"),
    "one class": ({"x": GRAY, "y": LABELS * 0}, "there must be training images of two classes, got all 20 of 0."),
    "no images": ({"x": GRAY[:0], "y": LABELS[:0]}, "must hold images, got shape (0, 5, 7"),
    "a class of the test images alone": (
        {"x_train": GRAY, "y_train": LABELS, "x_test": GRAY, "y_test": LABELS + 1},
        "x_test: row 3: label must be 0 to 3 as those of the training images, got 4.",
    ),
    "test images of another size": (
        {"x_train": GRAY, "y_train": LABELS, "x_test": GRAY[:, :4], "y_test": LABELS},
        "images must be of 5 x 7 pixels as the training images, got 4 x 7 (a.npz: x_test: row 0)",
    ),
    "pickled objects": (
        {"x": np.array([{}] * 20), "y": LABELS},
        "is not an .npz file of plain arrays (ValueError: object of",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_refused_in_one_line(load, case):
    arrays, why = BROKEN[case]
    with pytest.raises(UserError, match=re.escape(why)) as refused:
        load(**arrays)
    assert str(refused.value).count("\n") == 0


def test_a_file_cut_off_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=GRAY, y=LABELS)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"^--data: .*b\.npz: is not an \.npz file\.$"):
        load_dataset(str(tmp_path / "b.npz"))
    with pytest.raises(UserError, match=r"^--data: .*c\.npz: there is no such file\.$"):
        load_dataset(str(tmp_path / "c.npz"))
