import numpy as np
import pytest
import torch

from steadynorm.lab.data import Images, first, hold_out, some
from steadynorm.lab.data.images import chosen_by_class, random_stream


def _numbered(count: int) -> Images:
    """Images whose first byte tells their number."""
    rows = torch.zeros(count, 4, 4, 3, dtype=torch.uint8)
    rows[:, 0, 0, 0] = torch.arange(count)
    return Images(pixels=rows.permute(0, 3, 1, 2), labels=torch.arange(count) % 10)


def _numbers(images: Images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def test_hold_out_gives_every_image_to_exactly_one_part():
    rest, held = hold_out(_numbered(100), fraction=0.3, seed=0)
    assert sorted(_numbers(rest) + _numbers(held)) == list(range(100))


def test_hold_out_takes_the_fraction():
    assert len(hold_out(_numbered(100), fraction=0.3, seed=0)[1]) == 30


def test_hold_out_keeps_labels_with_their_images():
    for part in hold_out(_numbered(100), fraction=0.3, seed=0):
        assert part.labels.tolist() == [number % 10 for number in _numbers(part)]


def test_hold_out_is_the_same_for_the_same_seed():
    first, second = (hold_out(_numbered(100), fraction=0.3, seed=5)[1] for _ in range(2))
    assert _numbers(first) == _numbers(second)


def test_hold_out_differs_between_seeds():
    first, second = (hold_out(_numbered(100), fraction=0.3, seed=seed)[1] for seed in (5, 6))
    assert _numbers(first) != _numbers(second)


def test_hold_out_chooses_at_random():
    assert _numbers(hold_out(_numbered(100), fraction=0.3, seed=0)[1]) not in (
        list(range(30)),
        list(range(70, 100)),
    )


def test_hold_out_keeps_the_layout():
    for part in hold_out(_numbered(100), fraction=0.3, seed=0):
        assert part.pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, 0.001, 0.999])
def test_hold_out_refuses_to_leave_a_part_empty(fraction):
    with pytest.raises(ValueError, match=r"hold_out: fraction must .*, got .* of 100 images"):
        hold_out(_numbered(100), fraction=fraction, seed=0)


def test_seeds_that_agree_in_their_low_32_bits_have_different_streams():
    first, second = (random_stream(seed, 0).integers(0, 2**62, 4).tolist() for seed in (3, 3 + 2**32))
    assert first != second


def test_seed_and_epoch_are_not_interchangeable():
    first, second = (random_stream(*pair).integers(0, 2**62, 4).tolist() for pair in ((3, 4), (4, 3)))
    assert first != second


@pytest.mark.parametrize("pair", [(-1, 0), (0, -1), (2**64, 0)])
def test_a_seed_or_epoch_outside_64_bits_is_refused(pair):
    with pytest.raises(ValueError, match=r"random_stream: seed and epoch must be in"):
        random_stream(*pair)


def test_pixels_must_be_bytes():
    with pytest.raises(ValueError, match=r"pixels must be uint8 .*, got torch.float32 \(2, 3, 4, 4\)"):
        Images(pixels=torch.zeros(2, 3, 4, 4), labels=torch.zeros(2, dtype=torch.int64))


def test_there_must_be_one_label_for_each_image():
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(2,\), got torch.int64 \(3,\)"):
        Images(pixels=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels=torch.zeros(3, dtype=torch.int64))


def test_some_of_mixed_images_are_the_first():
    images = _numbered(100)
    assert _numbers(some(images, 30)) == _numbers(first(images, 30))


def test_some_of_images_that_come_class_by_class_have_every_class():
    images = _numbered(100)
    ordered = Images(pixels=images.pixels, labels=images.labels.sort().values)
    chosen = some(ordered, 40)
    assert chosen.labels.bincount().tolist() == [4] * 10
    assert _numbers(chosen) == sorted(_numbers(chosen)) == _numbers(some(ordered, 40))
    assert chosen.labels.tolist() == [number // 10 for number in _numbers(chosen)]


def test_some_are_all_where_there_are_fewer():
    images = _numbered(20)
    assert _numbers(some(Images(pixels=images.pixels, labels=images.labels.sort().values), 30)) == list(range(20))


def test_images_of_one_class_are_as_mixed_as_they_can_be():
    one = Images(pixels=_numbered(20).pixels, labels=torch.zeros(20, dtype=torch.int64))
    assert _numbers(some(one, 5)) == list(range(5))


def test_each_class_is_held_out_in_its_proportion():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 10, 1])
    rest, held = chosen_by_class(labels, share=0.2, seed=0)
    assert np.array_equal(np.sort(np.concatenate((rest, held))), np.arange(161))
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 10, 2, 0]
    assert all(
        np.array_equal(*pair) for pair in zip(chosen_by_class(labels, share=0.2, seed=0), (rest, held), strict=True)
    )
    assert not np.array_equal(chosen_by_class(labels, share=0.2, seed=1)[1], held)


@pytest.mark.parametrize("seed", range(5))
def test_no_class_is_held_out_whole(seed):
    labels = np.repeat([0, 1, 2], [8, 1, 1])
    rest, held = chosen_by_class(labels, share=0.7, seed=seed)
    assert len(held) == 7 and set(labels[rest]) == {0, 1, 2}
