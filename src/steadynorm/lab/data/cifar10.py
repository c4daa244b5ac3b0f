"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in ten classes, from files or from the Hugging Face hub.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steadynorm.lab.data.cache import cached_images
from steadynorm.lab.data.images import Dataset, Images
from steadynorm.lab.data.parquet import read_parquet
from steadynorm.lab.data.python_batches import read_batches
from steadynorm.reporting.failure import UserError

__all__ = ["load_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
REPOSITORY = "uoft-cs/cifar10"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One of the two splits, and how the files that hold it are called."""

    word: str
    """What the names of its Parquet files begin with."""
    count: int
    """Number of images."""
    batches: tuple[str, ...]
    """Its files in ``cifar-10-batches-py``."""


TRAIN = Split(word="train", count=50_000, batches=tuple(f"data_batch_{number}" for number in range(1, 6)))
TEST = Split(word="test", count=10_000, batches=("test_batch",))


def load_cifar10(data_dir: Path | None, progress: Callable[[str], None]) -> Dataset:
    """Load CIFAR-10.

    Args:
        data_dir: a directory with Parquet files named ``train*.parquet`` and ``test*.parquet``, in it or in
            its subdirectory ``plain_text`` or ``data``, or with ``cifar-10-batches-py`` in it, or that
            directory itself. None downloads the Parquet files from the Hugging Face hub, which keeps them for
            the next time.
        progress: told what takes long, a line at a time.

    Raises:
        UserError: the files cannot be had, or are not CIFAR-10.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(
            f"--data-dir: must be a directory, got {data_dir}. "
            "Give one that holds CIFAR-10, or go on with --data shapes."
        )
    if data_dir is not None and (folder := _batches_folder(data_dir)) is not None:
        train, validation = (_from_batches(folder, split, progress) for split in (TRAIN, TEST))
    else:
        files = _download(progress) if data_dir is None else _parquet_files(data_dir)
        train, validation = (_from_parquet(files[split.word], split, progress) for split in (TRAIN, TEST))
    return Dataset(name="cifar10", train=train, validation=validation, classes=CLASSES, mean=MEAN, std=STD)


def _batches_folder(data_dir: Path) -> Path | None:
    folders = (data_dir, data_dir / "cifar-10-batches-py")
    names = TRAIN.batches + TEST.batches
    return next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)


def _from_batches(folder: Path, split: Split, progress: Callable[[str], None]) -> Images:
    progress(f"cifar10: reading the {split.word} images in {folder}")
    return _checked(read_batches([folder / name for name in split.batches]), split, folder)


def _parquet_files(data_dir: Path) -> dict[str, list[Path]]:
    for folder in (data_dir / "plain_text", data_dir, data_dir / "data"):
        found = {split.word: sorted(folder.glob(f"{split.word}*.parquet")) for split in (TRAIN, TEST)}
        if any(found.values()):
            break
    for word, files in found.items():
        if not files:
            raise UserError(
                f"--data-dir {data_dir}: must hold CIFAR-10 as train*.parquet and test*.parquet or as "
                f"cifar-10-batches-py, got no {word}*.parquet. "
                "Complete it, or leave --data-dir out to download."
            )
    return found


def _from_parquet(files: list[Path], split: Split, progress: Callable[[str], None]) -> Images:
    name = f"cifar10-{split.word}"

    def decode() -> Images:
        return _checked(read_parquet(files, what=name, progress=progress), split, files[0].parent)

    return cached_images(name, decode, sources=files, progress=progress)


def _checked(images: Images, split: Split, place: Path) -> Images:
    if len(images) != split.count:
        raise UserError(
            f"{place}: the {split.word} split of CIFAR-10 must have {split.count:,} images, "
            f"got {len(images):,}. Complete its files, or download them again."
        )
    return images


def _download(progress: Callable[[str], None]) -> dict[str, list[Path]]:
    # Imported here because it costs half a second, and reading from a directory does not need it.
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging

    progress(f"cifar10: looking for {REPOSITORY} on the Hugging Face hub (144 MB where it is not there yet)")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # it would print every retry; the error below says what came of them
    try:
        return {split.word: [_download_split(split.word)] for split in (TRAIN, TEST)}
    # A broken connection is an HTTPError of the HTTP library or a RuntimeError of the transfer library.
    except (OSError, EntryNotFoundError, HTTPError, RuntimeError) as error:
        raise UserError(
            f"cifar10: downloading {REPOSITORY} must be possible, got {type(error).__name__}. "
            "Check the network, give --data-dir with the files, or go on with --data shapes."
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _download_split(word: str) -> Path:
    import huggingface_hub

    name = f"plain_text/{word}-00000-of-00001.parquet"
    return Path(huggingface_hub.hf_hub_download(REPOSITORY, name, repo_type="dataset"))
