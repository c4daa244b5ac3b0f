"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_path", "meant_name", "write_bytes", "write_text"]

_UNFINISHED = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.part")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to ``path`` when the block ends without an exception.

    The content is on the disk before it takes the name, so a kill or a power cut leaves the old file or the
    new one. On an exception the temporary file is removed and the old file stays. A symbolic link of that name is
    replaced, never followed.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def meant_name(name: str) -> str | None:
    """Return the final name of a temporary file that a killed :func:`atomic_path` left; None for other files.

    >>> meant_name(".runs.json.k3_x9abc.part")
    'runs.json'
    """
    found = _UNFINISHED.fullmatch(name)
    return None if found is None else found[1]


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make errors name the requested file, not the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, content.encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
