"""Data sets as ``datasets.save_to_disk`` lays them out, written here by pyarrow alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from steadynorm.lab.data import load_dataset
from steadynorm.reporting.failure import UserError


def png(row: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(row).save(out, "PNG")
    return out.getvalue()


def save(place: Path, images: Any, *, shards: int = 1) -> Path:
    """Write one split."""
    place.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list("abcdefghij"), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    names = [f"data-{number:05}-of-{shards:05}.arrow" for number in range(shards)]
    size = -(-len(images) // shards)
    for number, name in enumerate(names):
        part = slice(number * size, (number + 1) * size)
        cells = [{"bytes": png(row), "path": None} for row in images.rows[part].numpy()]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(cells, kind), "label": images.labels[part].tolist()})
        table = table.replace_schema_metadata(metadata)
        with pa.OSFile(str(place / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (place / "dataset_info.json").write_text(json.dumps({"features": features}))
    return place


@pytest.fixture
def saved(tmp_path, random_images) -> Path:
    place = tmp_path / "d"
    save(place / "train", random_images(20, seed=1), shards=3)
    save(place / "test", random_images(10, seed=2))
    (place / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return place


def test_splits_and_shards_are_read(saved, random_images):
    dataset = load_dataset(str(saved))
    assert torch.equal(dataset.train.pixels, random_images(20, seed=1).pixels)
    assert torch.equal(dataset.validation.pixels, random_images(10, seed=2).pixels)
    assert dataset.train.labels.tolist() == list(range(10)) * 2
    assert dataset.classes == tuple("abcdefghij")


def test_one_split_alone_is_split(saved):
    said: list[str] = []
    assert len(load_dataset(str(saved / "train"), progress=said.append).train) == 18
    assert said == ["the data have no validation part: 2 of 20 images are held out, in proportion to the classes"]


def test_a_dictionary_without_training_images_is_refused(saved):
    (saved / "train").rename(saved / "other")
    (saved / "dataset_dict.json").write_text('{"splits": ["other", "test"]}')
    with pytest.raises(UserError, match=r"d: must have a part train, got other and test"):
        load_dataset(str(saved))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("train/data-00001-of-00003.arrow", b"", r"data-00001-of-00003\.arrow: must be a complete Arrow file"),
        ("train/data-00001-of-00003.arrow", None, r"data-00001-of-00003\.arrow: must be a complete Arrow file"),
        ("train/state.json", b"{", r"state\.json: must be written by save_to_disk, got JSONDecodeError"),
        ("train/state.json", b"[]", r"state\.json: must be written by save_to_disk"),
        ("train/state.json", None, r"state\.json: must be there, got no such file"),
        ("train/state.json", b'{"_indices_data_files": [1], "_data_files": []}', "must have its rows in order"),
        ("dataset_dict.json", b'{"splits": []}', "must hold images, got none"),
    ],
)
def test_what_is_broken_is_named(saved, name, content, why):
    if content is None:
        (saved / name).unlink()
    else:
        (saved / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        load_dataset(str(saved))


def test_a_truncated_file_is_named(saved):
    path = saved / "test" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow: must be a complete Arrow file"):
        load_dataset(str(saved))
