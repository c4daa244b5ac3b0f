"""Data sets by their name on the Hugging Face hub; a stand-in answers for it."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from steadynorm.lab.data import load_dataset
from steadynorm.lab.data.hub import recognises
from steadynorm.reporting.failure import UserError


class Hub:
    """A repository's revisions, each a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.asked: list[tuple[str, str | None, str]] = []
        self.error: Exception | None = None

    def list_repo_files(self, repository, *, revision, repo_type):
        assert repo_type == "dataset"
        if self.error is not None:
            raise self.error
        place = self.place / (revision or "main")
        return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]

    def snapshot_download(self, repository, *, repo_type, revision, allow_patterns):
        assert repo_type == "dataset"
        self.asked.append((repository, revision, allow_patterns))
        if not (self.place / (revision or "main")).is_dir():
            raise self.error or FileNotFoundError
        return str(self.place / (revision or "main"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub")
    for name in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(made, name))
    return made


@pytest.fixture
def filled(hub, write_parquet, random_images) -> Hub:
    write_parquet(hub.place / "main" / "data" / "train-0.parquet", random_images(20))
    write_parquet(hub.place / "main" / "data" / "test-0.parquet", random_images(10))
    return hub


def test_parquet_files_are_downloaded_and_read(filled):
    said: list[str] = []
    dataset = load_dataset("someone/flowers", progress=said.append)
    assert (len(dataset.train), len(dataset.validation), dataset.name) == (20, 10, "flowers")
    assert filled.asked == [("someone/flowers", None, "*.parquet")]
    assert said == ["looking for someone/flowers on the Hugging Face hub"]


def test_a_folder_can_be_named(filled, write_parquet, random_images):
    write_parquet(filled.place / "main" / "large" / "train-0.parquet", random_images(20))
    with pytest.raises(
        UserError, match=r"someone/flowers on the hub: must be one data set, got .* in data/ and large/"
    ):
        load_dataset("someone/flowers")
    assert len(load_dataset("someone/flowers/data").train) == 20
    assert filled.asked == [("someone/flowers", None, "data/*.parquet")]


def test_what_the_hub_converted_is_taken_where_there_is_no_parquet(hub, write_parquet, random_images):
    (hub.place / "main").mkdir(parents=True)
    (hub.place / "main" / "images.zip").touch()
    write_parquet(hub.place / "refs/convert/parquet" / "default" / "train" / "0.parquet", random_images(20))
    assert len(load_dataset("someone/flowers").train) == 18
    assert hub.asked == [("someone/flowers", "refs/convert/parquet", "*.parquet")]


def test_a_repository_without_parquet_is_refused(hub):
    for name in ("main", "refs/convert/parquet"):
        (hub.place / name).mkdir(parents=True)
    with pytest.raises(UserError, match="someone/flowers: must have Parquet files, got none there"):
        load_dataset("someone/flowers")


def test_without_a_network_what_was_downloaded_before_is_read(filled):
    filled.error = ConnectionError("no network")
    assert len(load_dataset("someone/flowers").train) == 20


@pytest.mark.parametrize("name", ["someone/flowers", "cifar10", "cifar100", "mnist", "fashion_mnist"])
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
def test_without_a_network_the_ways_out_are_named(hub, error, name):
    hub.error = error
    with pytest.raises(UserError) as caught:
        load_dataset(name)
    message = str(caught.value)
    assert f"got {type(error).__name__}." in message
    assert "--data-dir" in message
    assert "--data shapes" in message
    assert "\n" not in message


def test_what_lies_on_the_disk_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recognises("someone/flowers")
    (tmp_path / "someone" / "flowers").mkdir(parents=True)
    assert not recognises("someone/flowers")
    assert not any(map(recognises, ("flowers", "/someone/flowers", "./flowers", "a b/c", "someone/")))
