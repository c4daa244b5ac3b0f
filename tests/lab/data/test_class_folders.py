"""Image files in class folders, as people have them and broken in one way each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from steadynorm.lab.data import Dataset, load_dataset
from steadynorm.reporting.failure import UserError


def load(place: Path, **how: Any) -> tuple[Dataset, list[str]]:
    said: list[str] = []
    return load_dataset(str(place), progress=said.append, **how), said


@pytest.fixture
def image():
    """Write an image of one shade, which the tests can tell again."""

    def write(path: Path, shade: int = 0, *, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, (shade,) * 3 if mode == "RGB" else shade).save(path)

    return write


@pytest.fixture
def folders(tmp_path, image) -> Path:
    """Two classes of three training and two validation images, 4 pixels high and 6 wide."""
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                image(tmp_path / part / name / f"{number}.png", 100 * label + 10 * number)
    return tmp_path


def shades(images: Any) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def test_folders_are_classes_and_files_go_by_their_names(folders):
    dataset, said = load(folders)
    assert dataset.classes == ("cat", "dog")
    assert (dataset.train.labels.tolist(), shades(dataset.train)) == ([0, 0, 0, 1, 1, 1], [0, 10, 20, 100, 110, 120])
    assert (dataset.validation.labels.tolist(), shades(dataset.validation)) == ([0, 0, 1, 1], [0, 10, 100, 110])
    assert (dataset.image_size, dataset.channels, said) == ((4, 6), 3, [])


def test_the_scale_is_that_of_the_training_images(folders):
    dataset, _ = load(folders)
    shares = dataset.train.pixels.double() / 255
    assert dataset.mean == pytest.approx(shares.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert dataset.std == pytest.approx(shares.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


@pytest.mark.parametrize("name", ["valid", "validation", "Test", "testing"])
def test_the_other_part_has_any_usual_name(folders, name):
    (folders / "val").rename(folders / name)
    assert len(load(folders)[0].validation) == 4


def test_of_two_other_parts_the_one_not_used_is_named(folders, image):
    image(folders / "test" / "cat" / "0.png")
    dataset, said = load(folders)
    assert len(dataset.validation) == 4
    assert said == [f"{folders}: val/ is the validation part; test/ is not used"]


def test_without_another_part_a_share_is_held_out_and_said(folders):
    dataset, said = load(folders / "train", validation_share=1 / 3)
    assert sorted(shades(dataset.train) + shades(dataset.validation)) == [0, 10, 20, 100, 110, 120]
    assert said == ["the data have no validation part: 2 of 6 images are held out, in proportion to the classes"]
    assert dataset.validation.labels.tolist() == [0, 1]
    again, _ = load(folders / "train", validation_share=1 / 3)
    assert torch.equal(again.validation.pixels, dataset.validation.pixels)


def test_the_same_share_of_each_class_is_held_out(tmp_path, image):
    for name, count in (("cat", 40), ("dog", 10)):
        for number in range(count):
            image(tmp_path / name / f"{number}.png", number)
    dataset, _ = load(tmp_path, validation_share=0.2)
    assert torch.bincount(dataset.validation.labels).tolist() == [8, 2]
    assert torch.bincount(dataset.train.labels).tolist() == [32, 8]


def test_images_in_a_folder_of_a_class_folder_are_found(folders, image):
    image(folders / "train" / "cat" / "more" / "9.png", 90)
    assert shades(load(folders)[0].train) == [0, 10, 20, 90, 100, 110, 120]


def test_what_systems_leave_behind_is_left_out_and_other_files_are_named(folders):
    for name in (".DS_Store", "._0.png", "Thumbs.db", "notes.txt"):
        (folders / "train" / "cat" / name).write_bytes(b"x")
    dataset, said = load(folders)
    assert len(dataset.train) == 6
    assert said == [f"{folders / 'train'}: left out 1 file, not images of a class: notes.txt"]


def test_an_empty_class_folder_is_left_out_and_named(folders):
    (folders / "train" / "eel").mkdir()
    dataset, said = load(folders)
    assert dataset.classes == ("cat", "dog")
    assert said == [f"{folders / 'train'}: no images in eel/; left out"]


def test_a_class_without_validation_images_is_named(folders):
    for path in (folders / "val" / "dog").iterdir():
        path.unlink()
    dataset, said = load(folders)
    assert dataset.validation.labels.tolist() == [0, 0]
    assert said == ["validation: no image of 1 of 2 classes: dog"]


def test_a_class_of_validation_images_alone_is_refused(folders, image):
    image(folders / "val" / "eel" / "0.png")
    with pytest.raises(UserError, match=r"val/eel: must be a class that has training images, .* cat and dog\.$"):
        load(folders)


def test_one_class_is_refused(folders):
    (folders / "train" / "cat").rename(folders / ".cat")
    with pytest.raises(UserError, match=r"0\.png: there must be training images of two classes, got all 3 of dog\.$"):
        load(folders / "train")


def test_a_folder_around_the_classes_is_named(folders):
    (folders / "val").rename(folders / ".val")
    (folders / "train").rename(folders / "pets")
    with pytest.raises(UserError, match=r"got pets/ alone\. If its folders are the classes, give .*/pets\.$"):
        load(folders)


def test_validation_without_training_is_refused(folders):
    (folders / "train").rename(folders / "test")
    with pytest.raises(UserError, match=r"must hold train/ beside test/ and val/, got none\.$"):
        load(folders)


def test_images_of_several_sizes_are_named_until_a_size_is_given(folders, image):
    image(folders / "train" / "dog" / "big.png", 130, size=(9, 8))
    with pytest.raises(UserError, match=r"images must be of one size, got 4 x 6 \(0\.png\) and 8 x 9 \(big\.png\),"):
        load(folders)
    dataset, _ = load(folders, image_size=(5,))
    assert dataset.image_size == (5, 5)
    assert shades(dataset.train) == [0, 10, 20, 100, 110, 120, 130]


def test_validation_images_of_another_size_are_refused(folders, image):
    image(folders / "val" / "dog" / "1.png", 130, size=(9, 8))
    with pytest.raises(UserError, match=r"of 4 x 6 pixels as the training images, got .* 8 x 9 \(1\.png\)"):
        load(folders)


def test_resizing_is_bilinear_with_antialiasing(folders):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folders / "train" / "cat" / "0.png")
    found = load(folders, image_size=(4, 6))[0].train.pixels[0]
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(noise).permute(2, 0, 1)[None].float(), size=(4, 6), mode="bilinear", antialias=True
    )[0]
    assert (found.float() - smooth).abs().max() <= 1


def test_gray_images_have_one_channel_and_three_beside_colours(folders, image):
    for path in folders.rglob("*.png"):
        image(path, 50, mode="L")
    assert load(folders)[0].train.pixels.shape == (6, 1, 4, 6)
    image(folders / "train" / "dog" / "9.png", 200)
    dataset, _ = load(folders)
    assert dataset.train.pixels.shape == (7, 3, 4, 6)
    assert dataset.train.pixels[0].unique().tolist() == [50]
    assert dataset.validation.pixels.shape == (4, 3, 4, 6)


def test_gray_images_before_the_first_coloured_ones_are_kept(folders, image, monkeypatch):
    monkeypatch.setattr("steadynorm.lab.data.decoding._WINDOW", 2)
    for number in range(3):
        image(folders / "train" / "cat" / f"{number}.png", 10 * number, mode="L")
    dataset, _ = load(folders)
    assert dataset.channels == 3
    assert shades(dataset.train) == [0, 10, 20, 100, 110, 120]


def test_colours_for_validation_beside_gray_training_images_are_refused(folders, image):
    for path in (folders / "train").rglob("*.png"):
        image(path, 50, mode="L")
    with pytest.raises(UserError, match=r"val/cat/0\.png: must be gray as the training images are, got colours"):
        load(folders)


KINDS = {
    "1": (Image.new("1", (6, 4), 1), 255),
    "LA": (Image.new("LA", (6, 4), (70, 255)), 70),
    "I;16": (Image.fromarray(np.full((4, 6), 250 * 257, np.uint16)), 250),
    "P": (Image.new("RGB", (6, 4), (70, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE), 70),
    "CMYK": (Image.new("CMYK", (6, 4), (0, 0, 0, 255)), 0),
    "RGBA": (Image.new("RGBA", (6, 4), (70, 0, 0, 0)), 255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixels_becomes_one_or_three_bytes(folders, kind):
    image, shade = KINDS[kind]
    ending = "tif" if kind == "CMYK" else "png"
    image.save(folders / "train" / "cat" / f"0.{ending}")
    if ending == "tif":
        (folders / "train" / "cat" / "0.png").unlink()
    dataset, said = load(folders)
    assert shades(dataset.train)[0] == shade
    told = {"I;16": "16 bits for a pixel, of which 8 were kept", "RGBA": "transparent pixels, which were laid on white"}
    assert said == ([f"train: 1 image had {told[kind]}"] if kind in told else [])


def test_photographs_are_turned_as_their_camera_says(folders):
    pixels = np.zeros((6, 4, 3), dtype=np.uint8)
    pixels[5] = 200  # the bottom row, which becomes the left column
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folders / "train" / "cat" / "0.png", exif=exif)
    found = load(folders)[0].train.pixels[0, 0]
    assert found.shape == (4, 6)
    assert found[:, 0].tolist() == [200] * 4


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_cannot_be_read_is_named(folders, content):
    path = folders / "train" / "dog" / "1.png"
    if content is None:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: must be an image that can be read, got .*\.$"):
        load(folders)


def test_columns_of_folders_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match=r"^--columns: names columns or arrays, which .* does not have\. Drop it\.$"):
        load_dataset(str(tmp_path), columns=("image", "label"))
