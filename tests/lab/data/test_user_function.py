"""Data sets that a function gives."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from steadynorm.lab.data import Dataset, load_dataset
from steadynorm.reporting.failure import UserError
from tests.support.experiments import tiny_dataset

PIXELS = torch.randint(0, 256, (20, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 4


@pytest.fixture
def load(monkeypatch) -> Callable[..., tuple[Dataset, list[str]]]:
    def make(function: Callable[[], Any], **how: Any) -> tuple[Dataset, list[str]]:
        module = types.ModuleType("users_data")
        module.give = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "users_data", module)
        said: list[str] = []
        return load_dataset("users_data:give", progress=said.append, **how), said

    return make


class Items:
    """What torch calls a map-style data set, as torchvision has it."""

    classes = ("ant", "bee", "cat", "dog")

    def __init__(self, convert: Callable[[np.ndarray], Any]) -> None:
        self.convert = convert

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.convert(PIXELS[row].permute(1, 2, 0).numpy()), int(LABELS[row])


def test_a_data_set_of_ours_is_taken_as_it_is(load):
    given = tiny_dataset()
    dataset, said = load(lambda: given)
    assert torch.equal(dataset.train.pixels, given.train.pixels)
    assert torch.equal(dataset.validation.labels, given.validation.labels)
    assert (dataset.name, dataset.classes, dataset.mean, dataset.std, said) == (
        *(given.name, given.classes, given.mean, given.std),
        [],
    )


@pytest.mark.parametrize("as_arrays", [False, True])
def test_two_pairs_are_training_and_validation(load, as_arrays):
    pair = (PIXELS.numpy(), LABELS.numpy()) if as_arrays else (PIXELS, LABELS)
    dataset, said = load(lambda: (pair, (pair[0][:6], pair[1][:6])))
    assert torch.equal(dataset.train.pixels, PIXELS)
    assert torch.equal(dataset.validation.pixels, PIXELS[:6])
    assert (dataset.validation.labels.tolist(), said) == ([0, 1, 2, 3, 0, 1], [])


def test_arrays_may_be_mapped_for_reading_or_turned(load, tmp_path):
    np.save(tmp_path / "x.npy", PIXELS.permute(0, 2, 3, 1).numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for images, expected in ((mapped, PIXELS), (mapped[:, :, ::-1], PIXELS.flip(3))):
        found = load(lambda images=images: ((images, LABELS), (images, LABELS)))[0].train.pixels
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_of_one_pair_a_share_is_held_out(load):
    dataset, said = load(lambda: (PIXELS.float() / 255, LABELS))
    assert (len(dataset.train), len(dataset.validation)) == (18, 2)
    assert said == [
        "users_data:give: images: float32 in [0, 1], rounded to bytes of 256 shades",
        "the data have no validation part: 2 of 20 images are held out, in proportion to the classes",
    ]


@pytest.mark.parametrize(
    "convert", [Image.fromarray, lambda pixels: pixels, lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1) / 255]
)
def test_a_torch_data_set_gives_images_of_any_kind(load, convert):
    dataset, _ = load(lambda: (Items(convert), Items(convert)))
    assert torch.equal(dataset.train.pixels, PIXELS)
    assert dataset.train.labels.tolist() == LABELS.tolist()
    assert dataset.classes == ("ant", "bee", "cat", "dog")


def test_a_torch_data_set_of_tensors_is_one_part(load):
    assert len(load(lambda: TensorDataset(PIXELS, LABELS))[0].train) == 18


def test_images_are_resized(load):
    assert load(lambda: Items(Image.fromarray), image_size=(3, 4))[0].image_size == (3, 4)


def test_resized_images_keep_their_proportions(load):
    """Of three squares beside each other, 10, 100 and 200, the one in the middle stays."""
    wide = np.repeat(np.array([10, 100, 200], dtype=np.uint8), 8)[None].repeat(8, 0)
    images = [(Image.fromarray(each), label) for each in (wide, wide.T) for label in (0, 1) for _ in range(3)]
    dataset, _ = load(lambda: images, image_size=(4, 4))
    assert dataset.train.pixels.min() > 80 and dataset.train.pixels.max() < 120


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda: 3, r"^users_data:give: images: must be a steadynorm\.lab\.data\.Dataset, .*; got int\.$"),
        (lambda: (3, 4), r"^users_data:give: training: must be .*; got int\.$"),
        (lambda: {}["x"], r"^users_data:give: failed with KeyError: 'x'\.$"),
        (lambda: [(1, 2, 3)] * 3, r"^users_data:give: images: item 0 must be an image and its label "),
        (
            lambda: [("a", 1), ("b", 0)] * 5,
            r"^users_data:give: images: item 0: must be an image that can be read, got str, ",
        ),
        (lambda: [(PIXELS[0], 0.5)] * 3, r"labels must be whole numbers or text, got float64\.$"),
        (lambda: [(PIXELS[0] - 2.0, 1)] * 3, r"item 0: float32 must be floats in \[0, 1\], got -1 to "),
        (lambda: (PIXELS, LABELS[:3]), r"images: must have one label for each of 20 images, got shape \(3,\)\.$"),
    ],
)
def test_what_is_no_data_set_is_refused(load, function, why):
    with pytest.raises(UserError, match=why):
        load(function)
