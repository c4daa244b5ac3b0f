import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from steadynorm.lab.data import Images
from steadynorm.lab.data.corruptions import CORRUPTIONS, OF_COLOUR, SEVERITIES, corrupt, table

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog")
EVERY = pytest.mark.parametrize("name", CORRUPTIONS)


@pytest.fixture(scope="module")
def pictures() -> Images:
    """Images with smooth colours and edges, about as light and varied as photographs."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(12):
        coarse = Image.fromarray(random.integers(40, 216, (19, 19, 3)).astype(np.uint8))
        down, right = random.integers(0, 24, 2)
        rows.append(np.asarray(coarse.resize((56, 56), Image.Resampling.BICUBIC))[down : down + 32, right : right + 32])
    pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
    return Images(pixels=pixels, labels=torch.arange(12) % 10)


def _first(images, count):
    return Images(pixels=images.pixels[:count], labels=images.labels[:count])


def _same(first, second):
    return torch.equal(first.pixels, second.pixels)


def _distance(first, second):
    return (first.pixels.double() - second.pixels.double()).square().mean().item()


@EVERY
def test_every_corruption_has_a_strength_for_each_severity(name):
    assert len(CORRUPTIONS[name].strengths) == len(SEVERITIES) == 5


@EVERY
def test_a_higher_severity_is_further_from_the_clean_images(name, pictures):
    distances = [_distance(pictures, corrupt(pictures, name, severity=severity, seed=0)) for severity in SEVERITIES]
    compared = {"saturate": (1, 2), "motion_blur": (1, 2, 3, 5)}.get(name, SEVERITIES)
    chosen = [distances[severity - 1] for severity in compared]
    assert chosen[0] > 0 and chosen == sorted(set(chosen))


def test_saturate_is_stronger_at_each_severity_that_adds_colour(pictures):
    distances = [
        _distance(pictures, corrupt(pictures, "saturate", severity=severity, seed=0)) for severity in (3, 4, 5)
    ]
    assert distances == sorted(set(distances))


@EVERY
def test_labels_and_layout_are_kept(name, pictures):
    corrupted = corrupt(pictures, name, severity=3, seed=0)
    assert corrupted.labels.tolist() == pictures.labels.tolist()
    assert corrupted.pixels.shape == pictures.pixels.shape
    assert corrupted.pixels.is_contiguous(memory_format=torch.channels_last)


@EVERY
def test_clean_images_are_left_unchanged(name, pictures):
    before = pictures.pixels.clone()
    corrupt(pictures, name, severity=5, seed=0)
    assert torch.equal(pictures.pixels, before)


@EVERY
def test_the_same_seed_gives_the_same_images(name, pictures):
    assert _same(*(corrupt(pictures, name, severity=2, seed=7) for _ in range(2)))


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_other_images(name, pictures):
    assert not _same(*(corrupt(pictures, name, severity=5, seed=seed) for seed in (7, 8)))


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - set(RANDOM)))
def test_other_corruptions_do_not_depend_on_the_seed(name, pictures):
    assert _same(*(corrupt(pictures, name, severity=5, seed=seed) for seed in (7, 8)))


@EVERY
def test_the_first_images_are_the_same_however_many_follow(name, pictures, monkeypatch):
    monkeypatch.setattr(table, "_CHUNK", 5)
    alone = corrupt(_first(pictures, 8), name, severity=4, seed=0)
    assert _same(alone, _first(corrupt(pictures, name, severity=4, seed=0), 8))


@EVERY
def test_images_do_not_depend_on_how_many_are_worked_on_at_once(name, pictures, monkeypatch):
    together = corrupt(pictures, name, severity=4, seed=0)
    monkeypatch.setattr(table, "_CHUNK", 5)
    assert _same(together, corrupt(pictures, name, severity=4, seed=0))


@pytest.mark.parametrize("name", RANDOM)
def test_images_have_random_numbers_of_their_own(name, pictures, monkeypatch):
    twins = Images(pixels=pictures.pixels[[0, 0, 0]], labels=pictures.labels[[0, 0, 0]])
    monkeypatch.setattr(table, "_CHUNK", 2)
    first, second, third = corrupt(twins, name, severity=5, seed=0).pixels
    assert not torch.equal(first, second) and not torch.equal(first, third)


def test_random_numbers_are_shared_by_no_two_corruptions_or_severities():
    streams = {table._stream_number(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}
    assert len(streams) == 5 * len(CORRUPTIONS) and all(2**32 < number < 2**64 - 2**8 for number in streams)


def _grey(level):
    return Images(pixels=torch.full((1, 3, 32, 32), level, dtype=torch.uint8), labels=torch.zeros(1, dtype=torch.int64))


def test_values_are_rounded_to_the_nearest_byte():
    # 0.05 of full light is 12.75, which cutting off would make 12.
    assert corrupt(_grey(100), "brightness", severity=1, seed=0).pixels.unique().tolist() == [113]


def test_values_stay_in_the_range_of_bytes():
    noisy = corrupt(_grey(250), "gaussian_noise", severity=5, seed=0).pixels
    assert noisy.min() > 120 and noisy.max() == 255


def test_an_unknown_corruption_is_refused(pictures):
    with pytest.raises(ValueError, match=r"corrupt: name must be one of gaussian_noise, .*, got 'rain'"):
        corrupt(pictures, "rain", severity=1, seed=0)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_outside_one_to_five_is_refused(severity, pictures):
    with pytest.raises(ValueError, match=rf"corrupt: severity must be one of .*, got {severity}"):
        corrupt(pictures, "fog", severity=severity, seed=0)


OF_32 = {
    "gaussian_noise": "11cd95838562c4e6",
    "shot_noise": "fc1625ba0c19e706",
    "impulse_noise": "5243b9384d6bbe47",
    "defocus_blur": "506d63b2aab14263",
    "gaussian_blur": "aa4f447cfb57e1c4",
    "motion_blur": "60acb88367a5ab4b",
    "zoom_blur": "b8bbf1370cd5f1a7",
    "fog": "6b113e451b871c25",
    "brightness": "4e4d0ed006d1cefb",
    "contrast": "f0233e15aef01a7d",
    "saturate": "36b392cbfbfce8f1",
    "pixelate": "2d713d351672db3f",
}
"""Digests of 3 x 32 x 32 images before other sizes were taken; of JPEG, whose encoder is Pillow's, there is none."""


@pytest.mark.parametrize("name", OF_32)
def test_photographs_of_32_pixels_come_out_as_they_always_did(name, pictures):
    made = [corrupt(pictures, name, severity=severity, seed=3).rows.contiguous().numpy() for severity in SEVERITIES]
    assert hashlib.sha256(np.stack(made)).hexdigest()[:16] == OF_32[name]


def _smooth(channels, height, width):
    coarse = torch.rand(2, channels, height // 4 + 1, width // 4 + 1, generator=torch.Generator().manual_seed(0))
    pixels = (40 + 170 * F.interpolate(coarse, size=(height, width), mode="bilinear")).to(torch.uint8)
    return Images(pixels=pixels.contiguous(memory_format=torch.channels_last), labels=torch.arange(2))


@EVERY
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 48), (1, 8, 8), (3, 97, 65), (3, 5, 31), (1, 1, 1)], ids=str)
def test_images_of_any_size_and_of_one_channel_are_taken(name, shape):
    images = _smooth(*shape)
    corrupted = corrupt(images, name, severity=5, seed=0)
    assert corrupted.pixels.shape == images.pixels.shape
    assert _same(images, corrupted) == ((shape[0] == 1 and name in OF_COLOUR) or (shape == (1, 1, 1) and name in LOCAL))


LOCAL = ("defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur", "contrast", "pixelate")
"""Nothing of these is left where there is one pixel."""


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur"])
def test_an_enlarged_picture_is_changed_as_much_as_the_small_one(name):
    small = _smooth(3, 32, 32)
    large = Images(
        pixels=F.interpolate(small.pixels.float(), scale_factor=3, mode="bilinear")
        .to(torch.uint8)
        .contiguous(memory_format=torch.channels_last),
        labels=small.labels,
    )
    of_small, of_large = (_distance(one, corrupt(one, name, severity=5, seed=0)) for one in (small, large))
    assert 0.6 < of_large / of_small < 1.6


def test_fewer_of_larger_images_are_worked_on_at_once(monkeypatch):
    seen = []

    def keep(pixels, random, amount):
        seen.append(len(pixels))
        return pixels

    monkeypatch.setattr(table, "_CHUNK", 8)
    monkeypatch.setitem(CORRUPTIONS, "brightness", table.Corruption(apply=keep, strengths=((0.0,),)))
    corrupt(
        Images(pixels=torch.zeros(5, 3, 64, 64, dtype=torch.uint8), labels=torch.zeros(5).long()),
        "brightness",
        severity=1,
        seed=0,
    )
    assert seen == [2, 2, 1]


def test_images_of_two_channels_are_refused():
    images = Images(pixels=torch.zeros(1, 2, 28, 28, dtype=torch.uint8), labels=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"corrupt: images must have 1 or 3 channels, got \(1, 2, 28, 28\)"):
        corrupt(images, "fog", severity=1, seed=0)
