import numpy as np
import pytest
import torch
from PIL import Image

from steadynorm.lab.data import Images
from steadynorm.lab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, table

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


def test_images_of_another_size_are_refused():
    images = Images(pixels=torch.zeros(1, 3, 28, 28, dtype=torch.uint8), labels=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"corrupt: images must be \(N, 3, 32, 32\), got \(1, 3, 28, 28\)"):
        corrupt(images, "fog", severity=1, seed=0)
