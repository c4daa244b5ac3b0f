import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steadynorm.lab.data import Dataset, load_dataset
from steadynorm.reporting.failure import UserError

RANDOM = np.random.default_rng(3)
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (12, 5))


def idx(magic: int, array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def labels(count: int) -> np.ndarray:
    return np.arange(count) % 10


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the four files, some of them changed."""

    def write(*, folder: str = "", zipped: bool = False, **changed: bytes) -> Path:
        contents = {
            "train_images": idx(2051, TRAIN),
            "train_labels": idx(2049, labels(12)),
            "t10k_images": idx(2051, TEST),
            "t10k_labels": idx(2049, labels(5)),
        } | changed
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            split, what = name.split("_")
            path = tmp_path / folder / f"{split}-{what}-idx{3 if what == 'images' else 1}-ubyte"
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
        return tmp_path

    return write


def load(place: Path) -> Dataset:
    return load_dataset(str(place))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "raw"])
def test_images_and_labels_are_read_in_their_order(write, folder: str, zipped: bool) -> None:
    data = load(write(folder=folder, zipped=zipped))
    assert (data.train.pixels[:, 0].numpy() == TRAIN).all()
    assert (data.validation.pixels[:, 0].numpy() == TEST).all()
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.validation.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": idx(2049, TRAIN)}, "train-images-idx3-ubyte: must begin with the number 2051, got 2049"),
        ({"t10k_labels": idx(2051, labels(5))}, "t10k-labels-idx1-ubyte: must begin with the number 2049, got 2051"),
        ({"train_images": b""}, "must begin with the number 2051, got 0"),
        ({"train_images": idx(2051, TRAIN)[:-1]}, r"must hold 9,424 bytes, got 9,423\. Download it again"),
        ({"train_images": idx(2051, TRAIN) + b"x"}, "must hold 9,424 bytes, got more"),
        ({"train_images": idx(2051, TRAIN)[:9]}, "must hold .* got 9"),
        ({"train_images": idx(2051, TRAIN[:, :27])}, r"must be of 27 x 28 pixels as the training images, got 28 x 28"),
        ({"t10k_images": idx(2051, TEST[:0]), "t10k_labels": idx(2049, labels(0))}, r"got shape \(0, 28, 28"),
        ({"train_labels": idx(2049, labels(11))}, r"must have one label for each of 12 images, got shape \(11,\)"),
        ({"t10k_labels": idx(2049, labels(5) + 9)}, "t10k-images-idx3-ubyte: row 1: label must be 0 to 9 as those"),
    ],
)
def test_damaged_files_are_refused_by_name(write, changed: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(write(**changed))


@pytest.mark.parametrize("keep", [5, 40, -4])
def test_a_cut_off_gzip_file_is_refused(write, keep: int) -> None:
    directory = write(zipped=True)
    path = directory / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"train-images-idx3-ubyte\.gz: must be a complete file, got .*Download it again"
    ):
        load(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(2051, TRAIN) + bytes(2**26), r"must hold 9,424 bytes, got more\. Download it again"),
        (
            struct.pack(">4I", 2051, 2**31, 28, 28) + bytes(2**26),
            r"at most 1,073,741,824 bytes, says 1,683,627,180,032",
        ),
    ],
    ids=["after what it says", "what it says"],
)
def test_a_gzip_file_that_unpacks_to_far_more_is_refused_before_it_fills_memory(write, content, message) -> None:
    directory = write(zipped=True)
    (directory / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        load(directory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_damaged_gzip_file_is_refused(write) -> None:
    directory = write(zipped=True)
    path = directory / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="must be a complete file"):
        load(directory)


def test_an_absent_file_is_named(write) -> None:
    directory = write()
    (directory / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"must hold t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz, got neither"):
        load(directory)


def test_without_test_images_a_share_is_held_out(write) -> None:
    directory = write()
    (directory / "t10k-images-idx3-ubyte").unlink()
    assert (len(load(directory).train), len(load(directory).validation)) == (11, 1)


def test_names_may_have_a_dot_as_some_archives_have(write) -> None:
    directory = write()
    for path in directory.glob("*-ubyte"):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load(directory).train) == 12
