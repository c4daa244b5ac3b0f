import dataclasses
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from steadynorm.lab.data import decoding, load_dataset, named
from steadynorm.reporting.failure import UserError

REAL = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


def _load(directory=None, progress=lambda line: None):
    return load_dataset("cifar10", data_dir=directory, progress=progress)


def test_both_splits_are_read_from_parquet_files(parquet_directory, random_images):
    found = _load(parquet_directory)
    assert torch.equal(found.train.pixels, random_images(20, seed=1).pixels)
    assert torch.equal(found.validation.pixels, random_images(10, seed=2).pixels)


@pytest.mark.parametrize("place", [".", "data"])
def test_parquet_files_may_lie_in_the_directory_or_in_data(parquet_directory, place):
    target = parquet_directory / place
    target.mkdir(exist_ok=True)
    for path in (parquet_directory / "plain_text").iterdir():
        path.rename(target / path.name)
    assert len(_load(parquet_directory).train) == 20


def test_shards_are_joined(parquet_directory, write_parquet, random_images):
    folder = parquet_directory / "plain_text"
    (folder / "train-00000-of-00001.parquet").unlink()
    first, second = random_images(12, seed=3), random_images(8, seed=4)
    write_parquet(folder / "train-00001-of-00002.parquet", second)
    write_parquet(folder / "train-00000-of-00002.parquet", first)
    assert torch.equal(_load(parquet_directory).train.pixels, torch.cat([first.pixels, second.pixels]))


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_batches_hold_the_same_images_as_parquet_files(parquet_directory, batches_directory, place):
    expected, found = _load(parquet_directory), _load(batches_directory / place)
    for split in ("train", "validation"):
        assert torch.equal(getattr(found, split).pixels, getattr(expected, split).pixels)
        assert torch.equal(getattr(found, split).labels, getattr(expected, split).labels)


def test_images_are_decoded_once(parquet_directory, monkeypatch):
    first = _load(parquet_directory)

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoding, "_decoded", fail)
    again = _load(parquet_directory)
    assert torch.equal(again.train.pixels, first.train.pixels)
    assert torch.equal(again.validation.pixels, first.validation.pixels)


def test_pixels_are_normalised_as_usual_for_this_data_set(parquet_directory):
    found = _load(parquet_directory)
    assert found.mean == (0.4914, 0.4822, 0.4465)
    assert found.std == (0.2023, 0.1994, 0.2010)


def test_a_directory_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--data-dir: must be a directory, got .*none\. Give .*--data shapes\.$"):
        _load(tmp_path / "none")


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^--data-dir: .*: must hold CIFAR-10 as it is published, as Parquet or as \.npz"
    ):
        _load(tmp_path)


def test_a_missing_split_is_named(parquet_directory):
    (parquet_directory / "plain_text" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"the test split of CIFAR-10 must have 10 images, got 0\."):
        _load(parquet_directory)


def test_a_missing_batch_is_named(batches_directory):
    (batches_directory / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"data_batch_3: must be readable"):
        _load(batches_directory)


def test_a_wrong_number_of_images_is_refused(parquet_directory, write_parquet, random_images):
    write_parquet(parquet_directory / "plain_text" / "train-00000-of-00001.parquet", random_images(19))
    with pytest.raises(UserError, match=r"the train split of CIFAR-10 must have 20 images, got 19\."):
        _load(parquet_directory)


def test_a_damaged_file_is_named(parquet_directory):
    path = parquet_directory / "plain_text" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet: must be a complete Parquet file"):
        _load(parquet_directory)


def test_without_a_directory_the_hub_is_asked(parquet_directory, monkeypatch):
    asked = []

    def download(repository, *, repo_type, revision, allow_patterns):
        asked.append((repository, repo_type, revision, allow_patterns))
        return str(parquet_directory)

    names = ["README.md", "plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert len(_load().train) == 20
    assert asked == [("uoft-cs/cifar10", "dataset", None, "plain_text/*.parquet")]


def _small(monkeypatch, name, counts):
    monkeypatch.setitem(named.KNOWN, name, dataclasses.replace(named.KNOWN[name], counts=counts))


def _arrays(train, test, side=28):
    x = np.random.default_rng(0).integers(0, 256, (train + test, side, side), dtype=np.uint8)
    y = np.arange(train + test) % 10
    return {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}


@pytest.mark.parametrize(("name", "first"), [("mnist", "0"), ("fashion_mnist", "T-shirt/top")])
def test_mnist_and_fashion_mnist_are_read_from_arrays_of_their_name(tmp_path, monkeypatch, name, first):
    _small(monkeypatch, name, (12, 6))
    np.savez(tmp_path / f"{name}.npz", **_arrays(12, 6))
    dataset = load_dataset(name, data_dir=tmp_path)
    assert (dataset.name, dataset.classes[0], len(dataset.classes)) == (name, first, 10)
    assert (dataset.mean == (0.1307,)) == (name == "mnist")


def test_of_several_data_sets_in_a_directory_the_one_of_that_name_is_read(tmp_path, monkeypatch):
    for name in ("mnist", "fashion_mnist"):
        _small(monkeypatch, name, (12, 6))
        np.savez(tmp_path / f"{name}.npz", **_arrays(12, 6) | {"y_test": np.full(6, len(name))})
    assert load_dataset("mnist", data_dir=tmp_path).validation.labels.tolist() == [5] * 6
    (tmp_path / "fashion_mnist.npz").unlink()
    with pytest.raises(UserError, match=r"--data-dir: .*: must hold Fashion-MNIST as it is published"):
        load_dataset("fashion_mnist", data_dir=tmp_path)


def test_images_of_another_form_are_refused(tmp_path, monkeypatch):
    _small(monkeypatch, "mnist", (12, 6))
    np.savez(tmp_path / "mnist.npz", **_arrays(12, 6, side=27))
    with pytest.raises(UserError, match="MNIST must have images of 28 x 28 pixels with 1 channel, got 27 x 27 with 1"):
        load_dataset("mnist", data_dir=tmp_path)
    assert load_dataset("mnist", data_dir=tmp_path, image_size=(14,)).image_size == (14, 14)


def test_cifar100_is_measured_and_named_by_its_files(tmp_path, monkeypatch, write_parquet, random_images):
    _small(monkeypatch, "cifar100", (20, 10))
    for word, count in (("train", 20), ("test", 10)):
        write_parquet(tmp_path / "cifar100" / f"{word}-0.parquet", random_images(count))
    dataset = load_dataset("cifar100", data_dir=tmp_path)
    assert dataset.mean == pytest.approx((dataset.train.pixels / 255.0).mean((0, 2, 3)).tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not REAL.is_dir():
        pytest.skip(f"CIFAR-10 is not in {REAL}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return _load(REAL)


@pytest.mark.slow
def test_the_real_data_set_has_its_published_sizes(real):
    assert real.train.pixels.shape == (50_000, 3, 32, 32)
    assert real.validation.pixels.shape == (10_000, 3, 32, 32)


def test_the_real_data_set_is_balanced(real):
    assert real.train.labels.bincount().tolist() == [5_000] * 10
    assert real.validation.labels.bincount().tolist() == [1_000] * 10


@pytest.mark.slow
def test_the_real_data_set_has_its_published_channel_means(real):
    means = [real.train.pixels[:, channel].double().mean().item() / 255 for channel in range(3)]
    assert means == pytest.approx([0.491, 0.482, 0.447], abs=0.001)


def test_real_pixels_are_stored_channels_last(real):
    assert real.train.pixels.is_contiguous(memory_format=torch.channels_last)
