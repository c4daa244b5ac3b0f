from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from steadynorm.lab.data import load_dataset, parquet
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

    monkeypatch.setattr(parquet, "_decode", fail)
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
    with pytest.raises(UserError, match=r"must hold CIFAR-10 as .*cifar-10-batches-py, got no train\*\.parquet"):
        _load(tmp_path)


def test_a_missing_split_is_named(parquet_directory):
    (parquet_directory / "plain_text" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"got no test\*\.parquet"):
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
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet: must be a whole Parquet file"):
        _load(parquet_directory)


def test_without_a_directory_the_hub_is_asked(parquet_directory, monkeypatch):
    asked = []

    def download(repository, name, *, repo_type):
        asked.append((repository, name, repo_type))
        return str(parquet_directory / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(_load().train) == 20
    assert asked == [
        ("uoft-cs/cifar10", "plain_text/train-00000-of-00001.parquet", "dataset"),
        ("uoft-cs/cifar10", "plain_text/test-00000-of-00001.parquet", "dataset"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("offline"),
        OfflineModeIsEnabled("offline"),
        ConnectionError("refused"),
        TimeoutError("too slow"),
        huggingface_hub.errors.HTTPError("broken off"),
        RuntimeError("transfer failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_a_network_the_ways_out_are_named(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError) as caught:
        _load()
    message = str(caught.value)
    assert type(error).__name__ in message
    assert "--data-dir" in message
    assert "--data shapes" in message
    assert "\n" not in message


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
