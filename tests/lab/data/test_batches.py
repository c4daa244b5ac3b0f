import pytest
import torch

from steadynorm.lab.data import Dataset, Images, batches, evaluation_batches
from steadynorm.lab.data.batches import PADDING, _placed
from steadynorm.lab.data.images import random_stream

CPU = torch.device("cpu")


def _numbered(count: int, size: int = 8) -> Images:
    """Random images whose labels are their numbers."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    return Images(pixels=rows.permute(0, 3, 1, 2), labels=torch.arange(count))


def _dataset(images: Images, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)) -> Dataset:
    """By default one that normalises bytes to themselves."""
    names = ("one",)
    return Dataset(name="test", train=images, validation=images, classes=names, mean=mean, std=std)


def _epoch(images, *, batch_size=10, seed=0, epoch=0, augment="none", dataset=None, part=(0, 1)):
    dataset = dataset or _dataset(images)
    return list(
        batches(
            images,
            dataset=dataset,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            augment=augment,
            device=CPU,
            part=part,
        )
    )


def _order(epoch) -> list[int]:
    return torch.cat([labels for _, labels in epoch]).tolist()


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_an_epoch_is_the_same_for_the_same_seed_and_number(augment):
    images = _numbered(40)
    first, second = (_epoch(images, seed=3, epoch=2, augment=augment) for _ in range(2))
    for (x, labels), (again, labels_again) in zip(first, second, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(labels, labels_again)


def test_an_epoch_does_not_depend_on_the_global_generator():
    images = _numbered(40)
    torch.manual_seed(1)
    first = _order(_epoch(images))
    torch.manual_seed(2)
    assert _order(_epoch(images)) == first


def test_an_epoch_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    _epoch(_numbered(40), augment="crop-flip")
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_have_different_orders():
    images = _numbered(40)
    assert _order(_epoch(images, epoch=0)) != _order(_epoch(images, epoch=1))


def test_seeds_have_different_orders():
    images = _numbered(40)
    assert _order(_epoch(images, seed=0)) != _order(_epoch(images, seed=1))


def test_an_epoch_holds_every_image_once_when_the_batches_come_out_even():
    assert sorted(_order(_epoch(_numbered(40)))) == list(range(40))


def test_only_an_incomplete_last_batch_is_dropped():
    order = _order(_epoch(_numbered(57)))
    assert len(order) == len(set(order)) == 50


def test_every_batch_has_the_size_asked_for():
    assert [len(labels) for _, labels in _epoch(_numbered(47))] == [10] * 4


def test_an_incomplete_batch_is_kept_when_it_is_the_only_one():
    assert sorted(_order(_epoch(_numbered(7)))) == list(range(7))


def test_labels_stay_with_their_images():
    images = _numbered(40)
    for x, labels in _epoch(images):
        assert torch.equal(x, images.pixels[labels].float())


def test_the_order_does_not_depend_on_augmentation():
    images = _numbered(40)
    assert _order(_epoch(images, augment="crop-flip")) == _order(_epoch(images))


def test_what_happens_to_an_image_does_not_depend_on_the_batch_size():
    images = _numbered(40)
    small, large = (torch.cat([x for x, _ in _epoch(images, batch_size=size, augment="crop-flip")]) for size in (4, 20))
    assert torch.equal(small, large)


def _cut_slowly(image: torch.Tensor, down: int, right: int, mirrored: bool) -> torch.Tensor:
    """Shift and mirror one (C, H, W) image pixel by pixel."""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            from_row = row + down - PADDING
            from_column = (width - 1 - column if mirrored else column) + right - PADDING
            if 0 <= from_row < height and 0 <= from_column < width:
                out[:, row, column] = image[:, from_row, from_column]
    return out


def test_crop_and_flip_equal_a_loop_over_the_pixels():
    images = _numbered(40)
    random = random_stream(3, 2)
    random.permutation(40)
    moves = random.integers((0, 0, 0), (9, 9, 2), size=(40, 3))
    for x, labels in _epoch(images, seed=3, epoch=2, augment="crop-flip"):
        for cut, number in zip(x, labels.tolist(), strict=True):
            down, right, mirrored = (int(move) for move in moves[number])
            assert torch.equal(cut, _cut_slowly(images.pixels[number].float(), down, right, bool(mirrored)))


def _seen_moves(count: int) -> set[tuple[int, int, bool]]:
    """Find by comparison which moves were made of copies of one image."""
    one = _numbered(1).pixels
    possible = {
        (down, right, mirrored): _cut_slowly(one[0].float(), down, right, mirrored)
        for down in range(9)
        for right in range(9)
        for mirrored in (False, True)
    }
    images = Images(pixels=one.repeat(count, 1, 1, 1), labels=torch.zeros(count, dtype=torch.int64))
    ((x, _),) = _epoch(images, batch_size=count, augment="crop-flip")
    table = torch.stack(list(possible.values()))
    matches = (x[:, None] == table[None]).flatten(2).all(dim=2)
    assert matches.any(dim=1).all()
    return {move for move, made in zip(possible, matches.any(dim=0).tolist(), strict=True) if made}


def test_every_shift_and_mirroring_occurs():
    assert len(_seen_moves(2000)) == 9 * 9 * 2


def test_pixels_are_centred_and_scaled():
    images = _numbered(4)
    dataset = _dataset(images, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.1))
    ((x, labels),) = _epoch(images, batch_size=4, dataset=dataset)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (dataset.mean, dataset.std))
    expected = (images.pixels[labels].double() / 255 - mean) / std
    assert (x - expected).abs().max() < 1e-6


def test_the_border_is_black_before_normalisation():
    white = Images(pixels=torch.full((50, 3, 8, 8), 255, dtype=torch.uint8), labels=torch.zeros(50, dtype=torch.int64))
    dataset = _dataset(white, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    ((x, _),) = _epoch(white, batch_size=50, augment="crop-flip", dataset=dataset)
    assert sorted(x.unique().tolist()) == [-2.0, 2.0]


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_batches_are_float32_and_channels_last(augment):
    ((x, labels),) = _epoch(_numbered(10), augment=augment)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_images_stay_as_they_are():
    images = _numbered(40)
    before = images.pixels.clone()
    _epoch(images, augment="crop-flip")
    assert torch.equal(images.pixels, before)


def test_evaluation_keeps_the_order_and_every_image():
    images = _numbered(47)
    found = list(evaluation_batches(images, dataset=_dataset(images), batch_size=10, device=CPU))
    assert _order(found) == list(range(47))
    assert torch.equal(torch.cat([x for x, _ in found]), images.pixels.float())


def test_an_unknown_augmentation_is_refused_at_once():
    images = _numbered(4)
    with pytest.raises(ValueError, match=r"augment must be one of \('none', 'crop-flip'\), got 'mixup'"):
        batches(
            images,
            dataset=_dataset(images),
            batch_size=2,
            seed=0,
            epoch=0,
            augment="mixup",
            device=CPU,
        )


@pytest.mark.parametrize("make", [batches, evaluation_batches])
def test_a_batch_size_below_one_is_refused_at_once(make):
    images = _numbered(4)
    more = {"seed": 0, "epoch": 0, "augment": "none"} if make is batches else {}
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make(images, dataset=_dataset(images), batch_size=0, device=CPU, **more)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_parts_of_a_batch_are_together_the_whole(augment):
    images = _numbered(40)
    whole = _epoch(images, batch_size=12, augment=augment)
    parts = [_epoch(images, batch_size=12, augment=augment, part=(number, 3)) for number in range(3)]
    for (x, labels), *split in zip(whole, *parts, strict=True):
        assert all(len(part) == 4 for _, part in split)
        assert torch.equal(torch.cat([part for part, _ in split]), x)
        assert torch.equal(torch.cat([part for _, part in split]), labels)


def test_parts_are_of_one_size_where_the_only_batch_is_odd():
    parts = [_epoch(_numbered(7), batch_size=10, part=(number, 2)) for number in range(2)]
    assert [len(_order(part)) for part in parts] == [3, 3]
    assert len({*_order(parts[0]), *_order(parts[1])}) == 6


@pytest.mark.parametrize(("part", "count"), [((2, 2), 40), ((-1, 2), 40), ((0, 11), 40), ((0, 4), 3)])
def test_a_part_that_is_none_is_refused(part, count):
    with pytest.raises(ValueError, match="part must be one of the batch"):
        _epoch(_numbered(count), part=part)


def test_images_that_would_fill_a_gpu_stay_outside(monkeypatch):
    rows = _numbered(40).rows
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (rows.numel(), 2**40))
    assert _placed(rows, torch.device("cuda")) is rows
