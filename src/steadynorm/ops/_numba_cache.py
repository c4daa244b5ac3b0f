"""A disk cache of compiled code whose damaged, outdated or missing files never break a training step.

Numba's own index maps types to file names, and Numba does not verify it. An empty file raises from the call; two
processes that write at once can store one function's code under the other's name; code stays valid after a change in
another file whose functions it calls. Here each file's name is a digest of everything that its code depends on, and the
file begins with a digest of its content. A file that does not match is removed, and the function is compiled again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import uuid
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

__all__ = ["keep_compiled"]

DIGEST_BYTES = hashlib.sha256().digest_size


def keep_compiled(function: Any) -> None:  # noqa: ANN401 (numba's dispatcher)
    """Let a Numba function load its code from disk and save it there; warn once if no directory is writable."""
    try:
        function._cache = _Cache(function.py_func)
    except RuntimeError as error:  # neither this directory nor the user's cache is writable
        _warn_unkept(str(error))


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, with verified files."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(Path(self._cache_path), self._impl.filename_base)

    def save_overload(self, types: Any, code: Any) -> None:  # noqa: ANN401 (numba's)
        """Save code if possible; it runs in any case."""
        try:
            super().save_overload(types, code)
        except OSError as error:  # a full disk, a directory that is gone
            _warn_unkept(str(error))
        except RuntimeError as error:  # Ctrl-C interrupted the compilation; a later process repeats it
            logging.getLogger("steadynorm").info("compiled code of %s is not kept: %s", self._name, error)


class _Files:
    """One file for each combination of types, in place of Numba's index and data files."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name

    def load(self, key: object) -> Any:  # noqa: ANN401 (what numba has saved)
        """Return the saved code; None if the file is absent or damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(code).digest() == digest:
            return pickle.loads(code)
        _remove(path)
        return None

    def save(self, key: object, code: object) -> None:
        """Write a file atomically."""
        content = dumps(code)
        path = self._path(key)
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            unfinished.write_bytes(hashlib.sha256(content).digest() + content)
            unfinished.replace(path)
        finally:
            _remove(unfinished)

    def flush(self) -> None:
        """Remove all files of the function."""
        for path in self.directory.glob(f"{self.name}.*.nbc"):
            _remove(path)

    def _path(self, key: object) -> Path:
        digest = hashlib.sha256(repr((key, numba.__version__, _sources())).encode()).hexdigest()
        return self.directory / f"{self.name}.{digest[:24]}.nbc"


@cache
def _sources() -> str:
    """Digest all source files of the kernels: each calls functions of the others."""
    here = Path(__file__).parent
    files = [here.parent / "statistics" / "noise.py", *sorted(here.glob("_numba_*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a later save overwrites it, or a later load rejects it again
        return


@cache
def _said() -> set[int]:
    return set()


def _warn_unkept(reason: str) -> None:
    if os.getpid() not in _said():
        _said().add(os.getpid())
        warnings.warn(
            f"steadynorm: compiled CPU kernels cannot be kept on disk ({reason}); every process compiles them "
            "again, some ten seconds each. Set NUMBA_CACHE_DIR to a directory that can be written to.",
            RuntimeWarning,
            stacklevel=2,
        )
