"""Parquet files as people have them: one or many, of any name, with columns of several kinds; and broken ones."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from steadynorm.lab.data import Dataset, load_dataset, storage
from steadynorm.reporting.failure import UserError


def load(place: Path, **how: Any) -> tuple[Dataset, list[str]]:
    said: list[str] = []
    return load_dataset(str(place), progress=said.append, **how), said


def encoded(kind: str = "PNG", *, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 7).save(out, kind)
    return out.getvalue()


def huge_png() -> bytes:
    """The beginning of a file that claims 2**32 pixels."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_metadata(table: Any, names: list[str], column: str = "label") -> Any:
    """Put the names of the classes where Hugging Face's libraries put them."""
    features = {column: {"names": names, "_type": "ClassLabel"}, "img": {"_type": "Image"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.fixture
def shards(tmp_path, write_parquet, random_images) -> Path:
    """Two files of training images and one of test images."""
    write_parquet(tmp_path / "d" / "data" / "train-00001-of-00002.parquet", random_images(8, seed=2))
    write_parquet(tmp_path / "d" / "data" / "train-00000-of-00002.parquet", random_images(12, seed=1))
    write_parquet(tmp_path / "d" / "data" / "test-00000-of-00001.parquet", random_images(10, seed=3))
    return tmp_path / "d"


def test_shards_are_joined_in_the_order_of_their_names(shards, random_images):
    dataset, said = load(shards)
    expected = [random_images(count, seed=seed).pixels for count, seed in ((12, 1), (8, 2), (10, 3))]
    assert torch.equal(dataset.train.pixels, torch.cat(expected[:2]))
    assert torch.equal(dataset.validation.pixels, expected[2])
    assert dataset.validation.labels.tolist() == list(range(10))
    assert dataset.train.pixels.is_contiguous(memory_format=torch.channels_last)
    assert said == []


@pytest.mark.parametrize("name", ["valid/0000.parquet", "my-validation.parquet", "images_dev.test_2.parquet"])
def test_the_part_is_told_by_names_of_files_and_folders(tmp_path, write_parquet, random_images, name):
    write_parquet(tmp_path / "training" / "a.parquet", random_images(20))
    write_parquet(tmp_path / name, random_images(10))
    dataset, _ = load(tmp_path)
    assert (len(dataset.train), len(dataset.validation)) == (20, 10)


def test_one_file_is_split(tmp_path, write_parquet, random_images):
    dataset, said = load(write_parquet(tmp_path / "mine.parquet", random_images(20)))
    assert (len(dataset.train), len(dataset.validation), dataset.name) == (18, 2, "mine")
    assert said == ["the data have no validation part: 2 of 20 images are held out, in proportion to the classes"]
    assert dataset.validation.labels.tolist() != [0, 1]


def test_files_of_other_parts_are_named(shards, write_parquet, random_images):
    write_parquet(shards / "data" / "extra-00000-of-00001.parquet", random_images(10))
    write_parquet(shards / "data" / "validation-00000-of-00001.parquet", random_images(10))
    dataset, said = load(shards)
    assert (len(dataset.train), len(dataset.validation)) == (20, 10)
    assert said == [
        "d: data/extra-00000-of-00001.parquet is of no usual part; not used",
        "d: validation is the validation part; test is not used",
    ]


def test_files_of_several_data_sets_are_refused(shards, write_parquet, random_images):
    write_parquet(shards / "other" / "train.parquet", random_images(4))
    with pytest.raises(UserError, match=r"d: must be one data set, got Parquet files in data/ and other/\. Give one"):
        load(shards)


def test_rows_in_several_groups_keep_their_order(tmp_path, write_parquet, random_images, monkeypatch):
    monkeypatch.setattr("steadynorm.lab.data.parquet._ROWS", 3)
    images = random_images(30)
    path = write_parquet(tmp_path / "a.parquet", images)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    dataset, _ = load(path, validation_share=0.5)
    both = torch.cat([dataset.train.pixels, dataset.validation.pixels])
    assert len(both) == 30
    for pixels, label in zip(both, torch.cat([dataset.train.labels, dataset.validation.labels]), strict=True):
        (row,) = (images.pixels == pixels).flatten(1).all(1).nonzero().flatten().tolist()
        assert images.labels[row] == label


def test_names_of_classes_are_read_beside_the_columns(shards):
    for path in shards.rglob("*.parquet"):
        pq.write_table(with_metadata(pq.read_table(path), list("abcdefghij")), path)
    assert load(shards)[0].classes == tuple("abcdefghij")


def test_fine_labels_are_taken_and_that_is_said(tmp_path):
    cells = [encoded(size=(4, 4))] * 6
    table = pa.table({"img": cells, "fine_label": [0, 1, 2, 3, 0, 1], "coarse_label": [0, 0, 1, 1, 0, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset, said = load(tmp_path / "a.parquet", validation_share=0.2)
    assert len(dataset.classes) == 4
    assert said[0] == "labels are fine_label; for the others give --columns img coarse_label"
    coarse, _ = load(tmp_path / "a.parquet", validation_share=0.2, columns=("img", "coarse_label"))
    assert len(coarse.classes) == 2


def test_images_may_be_bytes_or_lists_and_labels_text_or_a_dictionary(tmp_path):
    pixels = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    columns = {"a.parquet": [png_of(each) for each in pixels], "b.parquet": pixels.tolist()}
    for name, cells in columns.items():
        labels = pa.array(["owl", "ant", "owl", "ant"])
        labels = labels.dictionary_encode() if name == "b.parquet" else labels
        pq.write_table(pa.table({"pictures": cells, "kind": labels}), tmp_path / name)
        dataset, _ = load(tmp_path / name, validation_share=0.25, columns=("pictures", "kind"))
        assert dataset.classes == ("ant", "owl")
        rows = torch.cat([dataset.train.rows, dataset.validation.rows])
        assert sorted(rows.flatten(1).tolist()) == pixels.reshape(4, -1).tolist()


def png_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_images_are_resized(shards):
    assert load(shards, image_size=(8, 6))[0].image_size == (8, 6)


def test_images_are_decoded_once_and_again_for_another_size(shards, monkeypatch):
    whole, small = load(shards)[0], load(shards, image_size=(8,))[0]
    assert small.image_size == (8, 8)
    monkeypatch.setattr("steadynorm.lab.data.decoding._decoded", None)
    assert torch.equal(load(shards)[0].train.pixels, whole.train.pixels)
    assert torch.equal(load(shards, image_size=(8,))[0].validation.pixels, small.validation.pixels)


def test_another_share_is_not_taken_from_the_cache(shards):
    path = shards / "data" / "train-00000-of-00002.parquet"
    assert [len(load(path, validation_share=share)[0].train) for share in (0.25, 0.5)] == [9, 6]


def test_what_does_not_fit_into_memory_is_mapped(shards, monkeypatch, random_images):
    monkeypatch.setattr(storage, "memory_limit", lambda: 5_000)
    expected = torch.cat([random_images(12, seed=1).pixels, random_images(8, seed=2).pixels])
    for _ in range(2):
        dataset, _ = load(shards)
        assert torch.equal(dataset.train.pixels, expected)


def test_progress_is_told_at_even_steps(shards, monkeypatch):
    monkeypatch.setattr("steadynorm.lab.data.decoding._WINDOW", 5)
    monkeypatch.setattr("steadynorm.lab.data.decoding._TOLD_EVERY", 10)
    assert load(shards)[1] == ["train: 10 of 20 images decoded"]


def broken(path: Path, change: Any) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-100],
        lambda content: content[:4] + b"\xff" * 400 + content[404:],
        lambda content: content.replace(b"bytes", b"\x89ytes"),
        lambda content: b"",
    ],
    ids=["truncated", "damaged in the middle", "names that are no text", "empty"],
)
def test_a_broken_shard_is_named(shards, change):
    broken(shards / "data" / "train-00001-of-00002.parquet", change)
    with pytest.raises(
        UserError, match=r"train-00001-of-00002\.parquet: must be a complete Parquet file, got .*again\.$"
    ):
        load(shards)


CELLS = [{"bytes": encoded(size=(4, 4))}] * 4


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (
            {"picture": ["a"] * 4, "label": [0, 1] * 2},
            "must have one column image or img and one label, .*, got picture",
        ),
        (
            {"img": CELLS},
            r"got img \(struct<bytes: binary>\)\. Name the images and the labels by .*; the labels are ambiguous",
        ),
        ({"img": CELLS, "label": [0, 1] * 2, "labels": [0, 1] * 2}, "the labels are ambiguous"),
        ({"img": CELLS, "image": CELLS, "label": [0, 1] * 2}, "the images are ambiguous"),
        ({"img": [{"path": "a.png", "bytes": None}] * 4, "label": [0, 1] * 2}, r"row \d: .*, got the path a.png alone"),
        ({"img": CELLS, "label": [0.0, 1.0] * 2}, "the column label must hold whole numbers or text, got double"),
        ({"img": CELLS, "label": [0, 1, None, 1]}, "row 2: must have a label in the column label, got none"),
        ({"img": CELLS, "label": [0, 1, -1, 1]}, "row 2: label must be 0 to 1, got -1. A label of -1 means"),
        ({"img": CELLS, "label": [0, 1, 77, 1]}, "row 2: labels must be numbers of classes"),
        ({"img": CELLS[:0], "label": pa.array([], pa.int64())}, "must hold images, got no rows"),
        ({"img": [[[1, 2], [3]]] * 4, "label": [0, 1] * 2}, r"row \d: must hold an image, got rows of several lengths"),
    ],
)
def test_other_columns_and_labels_are_refused(tmp_path, table, why):
    if isinstance(table.get("img"), list) and not table["img"]:
        table = {**table, "img": pa.array([], pa.struct([("bytes", pa.binary())]))}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    columns = ("img", "label") if isinstance(table.get("img"), list) and isinstance(table["img"][0], list) else None
    with pytest.raises(UserError, match=why) as refused:
        load(tmp_path / "a.parquet", columns=columns, validation_share=0.5)
    assert "a.parquet" in str(refused.value)


def test_columns_that_are_not_there_are_refused(shards):
    with pytest.raises(
        UserError, match=r"--columns: .*train-00000.*: must be columns, got kind\. There are img \(struct"
    ):
        load(shards, columns=("img", "kind"))


def test_a_shard_with_other_columns_is_named(shards):
    pq.write_table(pa.table({"img": CELLS}), shards / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: must have the columns img and label as the o"):
        load(shards)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"no image", "no PNG, JPEG, BMP, WEBP, PPM, TIFF or GIF file"),
        (encoded("PNG")[:60], "image file is truncated|broken PNG"),
        (encoded("PCX"), "no PNG, JPEG, BMP"),
        (huge_png(), "exceeds limit"),
        (None, "no bytes"),
    ],
    ids=["nonsense", "truncated", "other format", "huge", "null"],
)
def test_a_row_without_an_image_is_named(tmp_path, random_images, write_parquet, content, found):
    path = write_parquet(tmp_path / "a.parquet", random_images(40), encoded={9: content})
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: row 9: must be an image .*, got .*({found})"):
        load(path)


def test_images_of_another_size_are_named(tmp_path, random_images, write_parquet):
    path = write_parquet(tmp_path / "a.parquet", random_images(40), encoded={9: encoded(size=(33, 31))})
    with pytest.raises(
        UserError, match=r"32 x 32 pixels as the training images, got 31 x 33 \(a\.parquet: row 9\) and 32 x 32 \(a"
    ):
        load(path)
