"""Small data sets in every layout that CIFAR-10 comes in."""

import dataclasses
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from steadynorm.lab.data import Images, named

TRAIN_COUNT, TEST_COUNT = 20, 10


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch) -> Path:
    """No test touches the user's own cache."""
    home = tmp_path / "cache-home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def small_cifar10(monkeypatch) -> None:
    """CIFAR-10 is taken to have 20 and 10 images."""
    small = dataclasses.replace(named.KNOWN["cifar10"], counts=(TRAIN_COUNT, TEST_COUNT))
    monkeypatch.setitem(named.KNOWN, "cifar10", small)


@pytest.fixture
def random_images() -> Callable[..., Images]:
    """Give images of random bytes; each label is the image's number modulo 10."""

    def make(count: int, *, seed: int = 0) -> Images:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
        return Images(pixels=rows.permute(0, 3, 1, 2), labels=torch.arange(count) % 10)

    return make


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write images as a Parquet file of the Hugging Face hub's layout, as PNG."""

    def write(path: Path, images: Images, *, column: str = "img", encoded: dict[int, bytes | None] | None = None):
        rows = images.pixels.permute(0, 2, 3, 1).numpy()
        cells = [{"bytes": _png(row), "path": None} for row in rows]
        for row, content in (encoded or {}).items():
            cells[row]["bytes"] = content
        types = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({column: pa.array(cells, types), "label": images.labels.tolist()})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture
def parquet_directory(tmp_path, write_parquet, random_images, small_cifar10) -> Path:
    """A complete small CIFAR-10 as the hub lays it out."""
    directory = tmp_path / "hub"
    folder = directory / "plain_text"
    write_parquet(folder / "train-00000-of-00001.parquet", random_images(TRAIN_COUNT, seed=1))
    write_parquet(folder / "test-00000-of-00001.parquet", random_images(TEST_COUNT, seed=2))
    return directory


@pytest.fixture
def batches_directory(tmp_path, random_images, small_cifar10) -> Path:
    """The same images as ``parquet_directory``, as ``cifar-10-batches-py``."""
    directory = tmp_path / "torchvision"
    folder = directory / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    train, test = random_images(TRAIN_COUNT, seed=1), random_images(TEST_COUNT, seed=2)
    for number in range(5):
        part = slice(4 * number, 4 * number + 4)
        _write_batch(folder / f"data_batch_{number + 1}", train.pixels[part], train.labels[part])
    _write_batch(folder / "test_batch", test.pixels, test.labels)
    return directory


def _write_batch(path: Path, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    data = np.ascontiguousarray(pixels.contiguous().numpy().reshape(len(pixels), -1))
    path.write_bytes(pickle.dumps({"batch_label": path.name, "labels": labels.tolist(), "data": data}, protocol=2))


def _png(row: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(row).save(out, "PNG")
    return out.getvalue()
