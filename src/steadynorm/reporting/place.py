"""Check that a command writes only into its own directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from steadynorm.reporting.failure import UserError, reason_of
from steadynorm.reporting.files import meant_name

__all__ = ["check_inside", "check_new", "check_own_file", "file_in", "new_directory"]


def check_new(place: Path, *, may_hold: Collection[str] = ()) -> None:
    """Refuse an ``--out`` that holds something: results would lie among other files, or replace them.

    Args:
        place: it need not exist.
        may_hold: names that do not count, nor the remains of writing such a file.

    Raises:
        UserError: it is no directory, or one that is not empty.
    """
    if place.is_symlink() and not place.exists():
        raise UserError(f"--out: {place} is a symbolic link to nothing. Give a new directory.")
    if not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"--out: {place} is a file. Give a new directory.")
    others = sorted(path.name for path in place.iterdir() if (meant_name(path.name) or path.name) not in may_hold)
    if others:
        raise UserError(f"--out: {place} must be new or empty, it holds {others[0]!r}. Give a new directory.")


def check_inside(directory: Path) -> None:
    """Refuse a directory through which files would be written elsewhere.

    Links to files are harmless: a file is written under another name and then takes its own, see
    :func:`steadynorm.reporting.files.atomic_path`.

    Raises:
        UserError: a link in it, at any depth, leads to a directory or to nothing.
    """
    for folder, directories, files in os.walk(directory):
        for path in (Path(folder) / name for name in (*directories, *files)):
            if path.is_symlink() and not path.is_file():
                raise UserError(
                    f"{path}: is a symbolic link, so files would be written outside {directory}. Remove it."
                )


def check_own_file(path: Path) -> None:
    """Refuse a name under which another file would be opened.

    Raises:
        UserError: it is a link, symbolic or hard, or no file at all.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return
    kind = "is a link to another file" if stat.S_ISLNK(found.st_mode) or stat.S_ISREG(found.st_mode) else "is no file"
    raise UserError(f"{path}: must be an ordinary file, {kind}. Remove it.")


def file_in(directory: Path, name: str) -> Path:
    """Return the path of a file in a directory.

    Raises:
        UserError: the name, which may come from a record that someone has edited, leads out of the directory.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise UserError(f"{directory}: {name!r} is no name of a file. Restore the record it comes from.")
    return directory / name


@contextlib.contextmanager
def new_directory(place: Path, *, name: str) -> Iterator[Path]:
    """Yield a temporary directory that is renamed when the block ends; on an exception nothing is left.

    Args:
        place: what it will be; there is nothing yet, or an empty directory, which is filled.
        name: of the option, for errors.

    Raises:
        UserError: something is there, or nothing can be written.
    """
    ready = place.is_dir() and not place.is_symlink() and not any(place.iterdir())
    if not ready and (place.exists() or place.is_symlink()):
        raise UserError(f"{name}: {place} exists already. Give a new directory.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    except OSError as error:
        raise UserError(f"{name}: {place} cannot be written: {reason_of(error)}.") from error
    try:
        yield directory
        directory.chmod(0o755)
        directory.rename(place)
    except BaseException:  # Ctrl-C among them
        shutil.rmtree(directory, ignore_errors=True)
        raise
