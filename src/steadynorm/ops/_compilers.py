"""Load compiled kernels on first use, and report a compiler that is absent or broken."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

__all__ = ["Compiler", "compiled_kernels", "count_compilations", "is_usable", "why_unusable"]

Compiler = Literal["numba", "triton"]
# Exceptions seen on import of a compiler that is absent, damaged, or built for another NumPy, LLVM or Python.
_BROKEN = (
    ImportError,
    OSError,
    AttributeError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
)
_loading = threading.Lock()
_told: set[Compiler] = set()


def compiled_kernels(compiler: Compiler) -> ModuleType:
    """Return the module of the kernels of a compiler that :func:`is_usable`."""
    return _load_numba() if compiler == "numba" else import_module("steadynorm.ops._triton")


def why_unusable(compiler: Compiler) -> str | None:
    """Load the kernels of a compiler; return why that fails, None if they load."""
    with _loading:
        return _try(compiler)


def is_usable(compiler: Compiler) -> bool:
    """Whether the kernels of a compiler load; warn once per compiler if they do not, with the reason."""
    reason = why_unusable(compiler)
    if reason is not None and compiler not in _told:
        _told.add(compiler)
        warnings.warn(
            f"steadynorm: the compiled kernels must be importable to be used, but {reason}. torch's own kernels run in "
            f'their place, more slowly. Repair the installation of {compiler}, or ask for backend("torch").',
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is None


@contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Collect the names of this package's functions that Numba compiles in the context; cached code does not count."""
    from numba.core import event

    names: list[str] = []

    class _Collector(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:  # noqa: ANN401 (numba's events)
            function = event.data["dispatcher"].py_func
            if function.__module__.startswith("steadynorm."):
                names.append(function.__name__)

        def on_end(self, event: Any) -> None:  # noqa: ANN401 (as above)
            pass

    with event.install_listener("numba:compile", _Collector()):
        yield names


@cache
def _try(compiler: Compiler) -> str | None:
    try:
        compiled_kernels(compiler)
    except _BROKEN as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{compiler} cannot be loaded ({type(error).__name__}: {lines[0]})"
    return None


@cache
def _load_numba() -> ModuleType:
    """Import the CPU kernels: half a second, which programs with small tensors alone never spend."""
    collecting = gc.isenabled()
    gc.disable()  # the import makes 100,000 objects, none of them garbage; scanning them takes a third of the time
    try:
        import numba

        if numba.config.DISABLE_JIT:
            raise RuntimeError("NUMBA_DISABLE_JIT is set")
        kernels = import_module("steadynorm.ops._numba")
        kernels.start()
    finally:
        if collecting:
            gc.enable()
    return kernels
