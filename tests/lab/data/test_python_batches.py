"""CIFAR's python version: CIFAR-10 and CIFAR-100, in folders and archives, good and broken."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from steadynorm.lab.data import load_dataset, python_batches
from steadynorm.reporting.failure import UserError

RANDOM = np.random.RandomState(0)
TEN = tuple(f"data_batch_{number}" for number in range(1, 6))


def _planes(count):
    return RANDOM.randint(0, 256, (count, 3072)).astype(np.uint8)


def cifar10(**changed):
    """Give the files of a small CIFAR-10 of two classes."""
    files = {name: {"data": _planes(4), "labels": [0, 1, 1, 0]} for name in (*TEN, "test_batch")}
    return files | {"batches.meta": {"label_names": ["plane", "car"]}} | changed


def cifar100(**changed):
    """Give the files of a small CIFAR-100 as Python 2 wrote them: keys are bytes."""
    fields = {b"data": _planes(4), b"fine_labels": [2, 0, 1, 2], b"coarse_labels": [1, 0, 0, 1]}
    names = {b"fine_label_names": [b"bee", b"cod", b"elm"], b"coarse_label_names": [b"animals", b"plants"]}
    return {"train": fields, "test": fields, "meta": names} | changed


def folder(place: Path, files) -> Path:
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(pickle.dumps(content, protocol=2))
    return place


def archive(place: Path, name: str, files) -> Path:
    with tarfile.open(place, "w:gz") as tar:
        for each, content in files.items():
            raw = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"{name}/{each}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return place


def load(place, **how):
    said = []
    return load_dataset(str(place), progress=said.append, **how), said


@pytest.mark.parametrize("below", [False, True])
def test_planes_become_channels_and_batches_are_joined_in_their_order(tmp_path, below):
    files = cifar10()
    place = folder(tmp_path / "cifar-10-batches-py", files)
    dataset, said = load(tmp_path if below else place)
    expected = np.concatenate([files[name]["data"] for name in TEN]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.train.pixels.numpy(), expected)
    assert dataset.train.pixels.is_contiguous(memory_format=torch.channels_last)
    assert dataset.validation.labels.tolist() == [0, 1, 1, 0]
    assert (dataset.classes, said) == (("plane", "car"), [])


def test_an_archive_holds_the_same_and_is_not_unpacked(tmp_path):
    files = cifar10()
    place = archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    dataset, _ = load(place)
    plain, _ = load(folder(tmp_path / "cifar-10-batches-py", files))
    assert torch.equal(dataset.train.pixels, plain.train.pixels)
    assert dataset.classes == plain.classes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-py", place.name]


@pytest.mark.parametrize("zipped", [False, True])
def test_cifar100_has_fine_labels_and_that_is_said(tmp_path, zipped):
    make = (lambda: archive(tmp_path / "c.tgz", "cifar-100-python", cifar100())) if zipped else None
    place = make() if make else folder(tmp_path / "cifar-100-python", cifar100())
    dataset, said = load(place)
    assert dataset.classes == ("bee", "cod", "elm")
    assert dataset.train.labels.tolist() == [2, 0, 1, 2]
    assert said[-1] == "labels are fine_labels; for the others give --columns data coarse_labels"
    coarse, _ = load(place, columns=("data", "coarse_labels"))
    assert (coarse.classes, coarse.train.labels.tolist()) == (("animals", "plants"), [1, 0, 0, 1])


def test_a_file_that_asks_for_code_is_refused_and_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    place = folder(tmp_path / "c", cifar10(test_batch={"data": _planes(1), "labels": [0], "more": Runs()}))
    with pytest.raises(UserError, match=r"test_batch: must be a batch of CIFAR, but the pickle asks for \w+\.mkdir"):
        load(place)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([1, 2], "test_batch: must be a batch of CIFAR, got a list"),
        ({"data": _planes(1)}, r"test_batch: must hold data of shape \(rows, 3072\) and a list of labels, got data\."),
        ({"labels": [1]}, "test_batch: must hold data of shape"),
        ({"data": _planes(1)[:, :5], "labels": [1]}, "test_batch: must hold data of shape"),
        ({"data": _planes(1), "labels": [1, 1]}, "test_batch: must hold a label, a whole number, for each of its 1"),
        ({"data": _planes(1), "labels": ["1"]}, "test_batch: must hold a label, a whole number"),
        ({"data": _planes(1), "labels": [True]}, "test_batch: must hold a label, a whole number"),
        ({"data": _planes(2), "labels": [1, 2]}, "test_batch: row 1: label must be 0 to 1 as those .*, got 2"),
    ],
)
def test_a_batch_of_something_else_is_refused(tmp_path, content, why):
    with pytest.raises(UserError, match=why):
        load(folder(tmp_path / "c", cifar10(test_batch=content)))


def test_a_missing_batch_is_named(tmp_path):
    place = folder(tmp_path / "c", cifar10())
    (place / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"data_batch_3: must be readable, got No such file"):
        load(place)
    files = cifar10()
    del files["data_batch_3"]
    with pytest.raises(UserError, match=r"cifar-10-batches-py: must hold data_batch_3, got no such file"):
        load(archive(tmp_path / "c.tar.gz", "cifar-10-batches-py", files))


def test_an_archive_of_something_else_or_cut_off_is_refused(tmp_path):
    place = archive(tmp_path / "c.tar.gz", "flowers", {"rose": 1})
    with pytest.raises(
        UserError, match=r"must hold cifar-10-batches-py or cifar-100-python as published, got flowers/r"
    ):
        load(place)
    whole = archive(tmp_path / "d.tar.gz", "cifar-10-batches-py", cifar10()).read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"c\.tar\.gz: must be a complete archive, got .*Download it again"):
        load(place)
    with pytest.raises(UserError, match=r"e\.tar\.gz: there is no such file"):
        load(tmp_path / "e.tar.gz")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    place = archive(tmp_path / "c.tar.gz", "cifar-10-batches-py", cifar10())
    monkeypatch.setattr(python_batches, "LARGEST", 100)
    with pytest.raises(UserError, match="cifar-10-batches-py/data_batch_1: must be at most 100 bytes, got "):
        load(place)


def test_columns_are_fields_of_the_batches(tmp_path):
    with pytest.raises(
        UserError, match="--columns: must be data and fine_labels or coarse_labels with cifar-100-python"
    ):
        load(folder(tmp_path / "c", cifar100()), columns=("image", "label"))
