"""Data sets of the Hugging Face hub, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steadynorm.lab.data.parquet import check_one_set, parts_of_files
from steadynorm.lab.data.parts import Parts, Reading
from steadynorm.reporting.failure import UserError

__all__ = ["download", "read", "recognises"]

CONVERTED = "refs/convert/parquet"
"""Branch in which the hub keeps data of other forms as Parquet."""


def recognises(data: str) -> bool:
    """Whether the text is OWNER/NAME or OWNER/NAME/FOLDER, and no path on the disk."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w./-]+)?", data) is not None and not Path(data).exists()


def read(data: str, reading: Reading) -> Parts:
    """Download the Parquet files unless they are there already, and read their heads.

    Raises:
        UserError: the files are not available, or belong to several data sets.
    """
    owner, name, *folder = data.split("/", 2)
    files = download(f"{owner}/{name}", folder[0] if folder else "", reading)
    return parts_of_files(name, files, reading)


def download(repository: str, folder: str, reading: Reading) -> dict[str, Path]:
    """Download Parquet files; the hub's library caches them.

    Args:
        repository: name on the hub.
        folder: folder of the files; empty for all.
        reading: receives a note about the download.

    Returns:
        the files by their path in the repository.

    Raises:
        UserError: they cannot be had.
    """
    import huggingface_hub

    reading.progress(f"looking for {repository} on the Hugging Face hub")
    prefix = f"{folder.strip('/')}/" if folder else ""
    with _told_in_one_line(repository, reading):
        for revision in (None, CONVERTED):
            names = _listed(repository, revision)
            if names is not None:
                names = [name for name in names if name.endswith(".parquet") and name.startswith(prefix)]
                check_one_set(names, what=f"{repository} on the hub", flag=reading.flag)
            if names == []:
                continue
            place = Path(
                huggingface_hub.snapshot_download(
                    repository, repo_type="dataset", revision=revision, allow_patterns=f"{prefix}*.parquet"
                )
            )
            found = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*.parquet"))}
            if files := {name: path for name, path in found.items() if name.startswith(prefix)}:
                return files
    raise UserError(
        f"{reading.flag}: {repository}: must have Parquet files{f' in {folder}' if folder else ''}, got none there."
    )


def _listed(repository: str, revision: str | None) -> list[str] | None:
    """List a repository's files; None without a network, where earlier downloads may suffice."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, RevisionNotFoundError  # type: ignore[attr-defined]

    try:
        return list(huggingface_hub.list_repo_files(repository, revision=revision, repo_type="dataset"))
    except RevisionNotFoundError:
        return []
    except (OSError, HTTPError) as error:
        if getattr(error, "response", None) is not None:  # the hub answered
            raise
        return None


@contextmanager
def _told_in_one_line(repository: str, reading: Reading) -> Iterator[None]:
    # Imported here because it costs half a second, and reading from the disk does not need it.
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # it would print every retry; the error below says what came of them
    try:
        yield
    # A broken connection is an HTTPError of the HTTP library or a RuntimeError of the transfer library.
    except (OSError, EntryNotFoundError, HFValidationError, HTTPError, RuntimeError) as error:
        raise UserError(
            f"{reading.flag}: downloading {repository} must be possible, got {type(error).__name__}. Check its "
            "name, which is no path here, and the network, or give "
            "the files: by --data, or by --data-dir for a data set with a name of ours. "
            "--data shapes needs neither."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
