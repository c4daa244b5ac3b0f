import hashlib

import pytest
import torch

from steadynorm.lab.data.shapes import make_shapes

# Changes only when the data set is meant to change; earlier records are then about other images.
CHECKSUM = "7b1df0421912e0c28c1344f8cf1b05749f60a49fc2d102c9f7dafedc592b5fe1"


@pytest.fixture(scope="module")
def shapes():
    return make_shapes()


def _bytes(images) -> bytes:
    return images.pixels.permute(0, 2, 3, 1).numpy().tobytes() + images.labels.numpy().tobytes()


def test_the_images_are_the_committed_ones(shapes):
    assert hashlib.sha256(_bytes(shapes.train) + _bytes(shapes.validation)).hexdigest() == CHECKSUM


def test_the_sizes_are_those_promised(shapes):
    assert shapes.train.pixels.shape == (1536, 3, 32, 32)
    assert shapes.validation.pixels.shape == (1024, 3, 32, 32)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_classes_are_balanced_to_one_image(shapes, split):
    counts = getattr(shapes, split).labels.bincount(minlength=10)
    assert len(counts) == len(shapes.classes)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_classes_come_in_random_order(shapes, split):
    labels = getattr(shapes, split).labels
    assert 0.05 < (labels[1:] == labels[:-1]).double().mean() < 0.15


def test_no_image_occurs_twice(shapes):
    rows = torch.cat([shapes.train.pixels, shapes.validation.pixels]).flatten(1)
    assert len({row.numpy().tobytes() for row in rows}) == 2560


def test_pixels_are_stored_channels_last(shapes):
    for split in (shapes.train, shapes.validation):
        assert split.pixels.is_contiguous(memory_format=torch.channels_last)


def test_mean_and_std_are_those_of_the_training_pixels(shapes):
    pixels = shapes.train.pixels.double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0)
    assert torch.allclose(torch.tensor(shapes.mean, dtype=torch.float64), mean, rtol=0, atol=1e-12)
    assert torch.allclose(torch.tensor(shapes.std, dtype=torch.float64), std, rtol=0, atol=1e-12)


def test_mean_colours_hardly_tell_the_class(shapes):
    # A nearest-mean rule on colour alone stays near chance, so that a network has to see figures.
    train, validation = (split.pixels.double().mean(dim=(2, 3)) for split in (shapes.train, shapes.validation))
    centres = torch.stack([train[shapes.train.labels == label].mean(dim=0) for label in range(10)])
    guess = torch.cdist(validation, centres).argmin(dim=1)
    assert (guess == shapes.validation.labels).double().mean() < 0.2
