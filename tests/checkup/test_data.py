"""Batches from a data set by name, from images in folders and from arrays, and what is refused."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from steadynorm.checkup.data import Wanted, load_sample
from steadynorm.lab.data import load_dataset
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record


def load(data: object, **wanted: Any) -> Any:
    return load_sample(str(data), Wanted(**wanted), lambda message: None)


def arrays(tmp_path: Path, **named: Any) -> Path:
    np.savez(tmp_path / "a.npz", **named)
    return tmp_path / "a.npz"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three images each of two classes: red ones, and blue ones that are twice as wide as high."""
    for name, color, size in (("red", (255, 0, 0), (8, 8)), ("blue", (0, 0, 255), (16, 8))):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", size, color).save(tmp_path / name / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_training_images_of_a_data_set_are_normalized_as_it_says() -> None:
    sample = load("digits", batch_size=16, number=2)
    dataset = load_dataset("digits")
    x, y = sample.batches[0]
    pixels = x * dataset.std[0] + dataset.mean[0]
    rows = [
        int((dataset.train.pixels == (255 * image).round().byte()).flatten(1).all(1).nonzero()[0]) for image in pixels
    ]
    assert dataset.train.labels[rows].tolist() == y.tolist()
    assert rows != sorted(rows)
    assert (len(sample.batches), sample.classes) == (2, 10)
    assert sample.told.startswith("32 training images of digits in batches of 16, normalized by mean 0.")


def test_the_seed_decides_which_samples_are_taken() -> None:
    first, again, other = (load("digits", batch_size=16, number=1, seed=seed).batches[0][1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mean_std_and_size_can_be_given() -> None:
    plain = load("digits", batch_size=4, number=1, mean=(0.0,), std=(1.0,)).batches[0][0]
    assert (float(plain.min()), float(plain.max())) == (0.0, 1.0)
    moved = load("digits", batch_size=4, number=1, mean=(0.5,), std=(0.25,)).batches[0][0]
    assert torch.allclose(moved, (plain - 0.5) / 0.25, atol=1e-6)
    assert load("digits", batch_size=4, number=1, input_size=(32, 40)).batches[0][0].shape == (4, 1, 32, 40)


def test_floats_are_given_as_they_are_and_an_incomplete_batch_is_left_out(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(10, 2, 3)), np.arange(10) % 3
    sample = load(arrays(tmp_path, x=x, y=y), batch_size=4, number=8)
    assert [(len(a), len(b)) for a, b in sample.batches] == [(4, 4), (4, 4)]
    for images, labels in sample.batches:
        for image, label in zip(images, labels, strict=True):
            (row,) = np.flatnonzero((np.abs(x - image.numpy()) < 1e-6).all((1, 2)))
            assert y[row] == label
    assert sample.classes == 3
    assert sample.told == "8 samples of a.npz in batches of 4, as they are"


def test_a_file_smaller_than_a_batch_is_one_batch(tmp_path: Path) -> None:
    sample = load(arrays(tmp_path, x=np.zeros((3, 2))), batch_size=64)
    assert [tuple(each.shape) for each in sample.batches] == [(3, 2)]
    assert sample.classes == 0


def test_bytes_are_pixels_and_channels_come_first(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5, 6, 3), dtype=np.uint8)
    pixels[..., 1] = 255
    (x,) = load(arrays(tmp_path, x=pixels), mean=(0.0, 0.5, 0.0), std=(1.0, 0.5, 1.0)).batches
    assert x.shape == (4, 3, 5, 6)
    assert x[0, :, 0, 0].tolist() == [0.0, 1.0, 0.0]


def test_other_integers_are_indices(tmp_path: Path) -> None:
    (x,) = load(arrays(tmp_path, x=np.arange(6, dtype=np.int32).reshape(3, 2))).batches
    assert x.dtype == torch.int64
    assert sorted(x.flatten().tolist()) == [0, 1, 2, 3, 4, 5]


def test_folders_are_classes_in_the_order_of_their_names(folders: Path) -> None:
    sample = load(folders, batch_size=6, mean=(0.0,), std=(1.0,), input_size=(4, 4))
    ((x, y),) = sample.batches
    assert x.shape == (6, 3, 4, 4)
    assert {(int(label), tuple(image[:, 0, 0].tolist())) for image, label in zip(x, y, strict=True)} == {
        (0, (0.0, 0.0, 1.0)),
        (1, (1.0, 0.0, 0.0)),
    }
    assert sample.classes == 2
    assert "with 2 class folders" in sample.told


def test_images_of_a_directory_are_fed_as_photographs_usually_are(folders: Path) -> None:
    ((x, y),) = load(folders, batch_size=6).batches
    assert x.shape == (6, 3, 224, 224)
    red = x[y == 1][0, :, 0, 0]
    assert torch.allclose(
        red, (torch.tensor([1.0, 0, 0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )


def test_images_without_folders_have_no_labels(folders: Path) -> None:
    (x,) = load(folders / "red", batch_size=3).batches
    assert len(x) == 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"images": np.zeros(3)}, "must have an array x, and y if there are labels; it has images."),
        ({"x": np.zeros(3), "y": np.zeros(3)}, "y must be integers of shape (3,), got float64 (3,)."),
        ({"x": np.zeros(3), "y": np.zeros(2, dtype=int)}, "y must be integers of shape (3,), got int64 (2,)."),
        ({"x": np.zeros((0, 3))}, "x must be numbers of shape (N, ...), got float64 (0, 3)."),
        ({"x": np.array(["a"])}, "x must be numbers"),
        ({"x": np.array([{}, 1], dtype=object)}, "is not an .npz file of plain arrays"),
    ],
)
def test_arrays_that_mean_nothing_are_refused(tmp_path: Path, content: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        load(arrays(tmp_path, **content))


def test_what_is_no_data_is_refused(tmp_path: Path, folders: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not an archive")
    for data, why in (
        ("imagenet", "--data: must be one of: shapes, digits, cifar10, cifar100, mnist, fashion_mnist; "),
        (tmp_path / "none.npz", "there is no such file"),
        (tmp_path / "a.npz", "a.npz: is not an .npz file"),
        (folders / "empty", "which holds nothing."),
    ):
        with pytest.raises(UserError, match=re.escape(why)):
            load(data)


def test_an_image_that_cannot_be_read_is_named(folders: Path) -> None:
    (folders / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png: is not a readable image"):
        load(folders, batch_size=6)


@pytest.mark.parametrize("flag", ["mean", "std"])
def test_numbers_by_channel_must_fit(flag: str) -> None:
    with pytest.raises(UserError, match=rf"^--{flag}: must be one number or 1, one for each channel, got 3\."):
        load("digits", batch_size=4, number=1, **{flag: (0.5, 0.5, 0.5)})


def test_a_place_has_no_data_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data-dir: is for named data sets"):
        load(tmp_path, data_dir=tmp_path)


def test_a_stream_is_all_samples_in_their_order(tmp_path: Path) -> None:
    path = arrays(tmp_path, x=np.arange(10, dtype=np.float32)[:, None], y=np.arange(10) % 3)
    found = load(path, batch_size=4, number=9, in_order=True)
    assert torch.cat([x for x, _ in found.batches]).flatten().tolist() == list(range(10))
    assert [len(x) for x, _ in found.batches] == [4, 4, 2]
    assert found.told == "10 samples of a.npz in batches of 4, as they are"


def test_validation_images_of_a_data_set_are_taken_where_they_are_asked_for() -> None:
    found = load("shapes", batch_size=8, number=1, part="validation", in_order=True)
    dataset = load_dataset("shapes")
    assert torch.equal(found.batches[0][1], dataset.validation.labels[:8])
    assert found.told.startswith("8 validation images of shapes, ")


def parquet(tmp_path: Path, rows: Any, labels: list[int], *, name: str = "a.parquet") -> Path:
    """Write images as the hub has them."""
    cells = []
    for row in rows:
        out = io.BytesIO()
        Image.fromarray(row).save(out, "PNG")
        cells.append({"bytes": out.getvalue()})
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / name)
    return tmp_path / name


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)


def test_every_layout_of_experiments_is_read_and_samples_keep_their_labels(tmp_path: Path) -> None:
    path = parquet(tmp_path, PIXELS, list(range(12)))
    ((x, y),) = load(path, batch_size=12, mean=(0.0,), std=(1.0,)).batches
    assert y.tolist() != list(range(12))
    assert torch.equal((x * 255).round().byte(), torch.from_numpy(PIXELS).permute(0, 3, 1, 2)[y])
    sample = load(path, batch_size=12)
    assert abs(float(sample.batches[0][0].mean())) < 1e-5
    assert abs(float(sample.batches[0][0].std()) - 1) < 0.05
    assert sample.told.startswith(f"12 images of {path}, normalized by mean 0.")


def test_a_stream_is_the_part_for_validation(tmp_path: Path) -> None:
    parquet(tmp_path, PIXELS, [0, 1] * 6, name="train.parquet")
    parquet(tmp_path, PIXELS[:3], [1, 0, 1], name="test.parquet")
    assert load(tmp_path, batch_size=12, part="validation", in_order=True).batches[0][1].tolist() == [1, 0, 1]
    np.savez(tmp_path / "k.npz", x_train=PIXELS, y_train=np.arange(12) % 2, x_test=PIXELS[:3], y_test=np.ones(3, int))
    assert load(tmp_path / "k.npz", batch_size=12, part="validation", in_order=True).batches[0][1].tolist() == [1] * 3


def test_of_training_and_validation_folders_the_part_that_is_asked_for_is_taken(folders: Path) -> None:
    for part in ("train", "val"):
        for name in ("red", "blue"):
            (folders / "d" / part).mkdir(parents=True, exist_ok=True)
            shutil.copytree(folders / name, folders / "d" / part / name)
    (folders / "d" / "val" / "red" / "0.png").unlink()
    assert len(load(folders / "d", batch_size=9).batches[0][0]) == 6
    sample = load(folders / "d", batch_size=9, part="validation", in_order=True)
    assert sample.batches[0][1].tolist() == [0, 0, 0, 1, 1]
    assert "with 2 class folders, cut to 224 x 224" in sample.told


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = arrays(tmp_path, a=np.zeros((4, 2), np.float32), b=np.arange(4), x=np.ones((4, 2)))
    ((x, y),) = load(path, batch_size=4, columns=("a", "b")).batches
    assert (float(x.sum()), sorted(y.tolist())) == (0.0, [0, 1, 2, 3])
    with pytest.raises(UserError, match="must have an array c, and b if there are labels; it has a, b and x"):
        load(path, columns=("c", "b"))


def trained(**resolved: Any) -> Record:
    return Record(
        experiment="compare", command="", created="", config={"data": "d"}, resolved=resolved, versions={}, machine={}
    )


def test_images_are_fed_as_the_run_of_a_checkpoint_fed_them(folders: Path) -> None:
    run = trained(mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 1.0], image_size=[4, 6])
    sample = load(folders, batch_size=6, trained=run)
    ((x, y),) = sample.batches
    assert x.shape == (6, 3, 4, 6)
    assert x[y == 1][0, :, 0, 0].tolist() == [2.0, -1.0, -0.5]
    assert sample.told.endswith("resized to 4 x 6, normalized by mean 0.5 0.5 0.5 and std 0.25 0.5 1")
    assert load(folders, batch_size=6, trained=run, input_size=(8, 8)).batches[0][0].shape == (6, 3, 8, 8)
    assert load(folders, batch_size=6, trained=trained()).batches[0][0].shape == (6, 3, 224, 224)


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("pixels", [np.full((4, 2, 2, 1), 255, np.uint8), np.ones((4, 2, 2), np.float32)])
def test_arrays_are_fed_as_the_run_of_a_checkpoint_fed_them(tmp_path: Path, pixels: Any, with_labels: bool) -> None:
    run = trained(mean=[0.5], std=[0.25], image_size=[4, 6])
    path = arrays(tmp_path, x=pixels, **({"y": np.array([0, 2, 1, 2])} if with_labels else {}))
    sample = load(path, batch_size=4, trained=run, in_order=True)
    x = sample.batches[0][0] if with_labels else sample.batches[0]
    assert torch.equal(x, torch.full((4, 1, 4, 6), 2.0))
    assert sample.classes == (3 if with_labels else 0)
    if with_labels:
        assert sample.batches[0][1].tolist() == [0, 2, 1, 2]


def test_images_without_folders_are_fed_as_the_run_of_a_checkpoint_fed_them(folders: Path) -> None:
    run = trained(mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 1.0], image_size=[4, 6])
    (x,) = load(folders / "red", batch_size=3, trained=run).batches
    assert x.shape == (3, 3, 4, 6)
    assert x[0, :, 0, 0].tolist() == [2.0, -1.0, -0.5]


def test_images_of_several_sizes_in_a_table_ask_for_a_size(tmp_path: Path) -> None:
    path = parquet(tmp_path, [*PIXELS[:3], PIXELS[3, :2]], [0, 1, 0, 1])
    with pytest.raises(UserError, match=r"of one size, got 2 x 5 .* by --input-size\.$"):
        load(path, batch_size=4)
    assert load(path, batch_size=4, input_size=(3, 3)).batches[0][0].shape == (4, 3, 3, 3)


def test_a_data_set_of_a_name_has_the_size_of_the_run_of_a_checkpoint() -> None:
    run = replace(trained(), config={"data": "digits", "image_size": [14]})
    assert load("digits", batch_size=4, number=1, trained=run).batches[0][0].shape == (4, 1, 14, 14)
    assert load("shapes", batch_size=4, number=1, trained=run).batches[0][0].shape == (4, 3, 32, 32)
