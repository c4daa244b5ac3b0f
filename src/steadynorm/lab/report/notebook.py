"""Notebooks: made cell by cell, executed with this interpreter, the same bytes every time."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["CellSource", "NotebookFailure", "as_text", "as_triple_quoted", "execute", "make"]

START_TIMEOUT_SECONDS = 60
CELL_TIMEOUT_SECONDS = 120


class NotebookFailure(Exception):
    """The kernel did not start, died, or met an exception in a cell."""


@dataclass(frozen=True, kw_only=True)
class CellSource:
    """One cell before it is run."""

    name: str
    """Its id: unique in the notebook; letters, digits and hyphens."""
    kind: Literal["markdown", "code"]
    source: str


def make(cells: Sequence[CellSource]) -> Any:  # noqa: ANN401 - nbformat's own node type, untyped
    """Make a notebook that has not been run; any Python 3 kernel opens it."""
    from nbformat import v4

    node: Any = v4  # without types of its own
    makers = {"markdown": node.new_markdown_cell, "code": node.new_code_cell}
    notebook = node.new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.cells = [makers[cell.kind](cell.source.strip("\n"), id=cell.name) for cell in cells]
    return notebook


def execute(notebook: Any, directory: Path) -> None:  # noqa: ANN401 - nbformat's own node type, untyped
    """Run a notebook in place.

    The kernel is this interpreter, whatever kernels the user has installed, and leaves nothing in the home.

    Args:
        notebook: as :func:`make` gives it; its outputs are filled in.
        directory: where the kernel works.

    Raises:
        NotebookFailure: the kernel did not start, died, took too long, or a cell raised.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellTimeoutError, DeadKernelError

    with tempfile.TemporaryDirectory(prefix="steadynorm-kernel-", ignore_cleanup_errors=True) as scratch:
        manager = AsyncKernelManager(
            connection_file=str(Path(scratch) / "kernel.json"),
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc" if os.name == "posix" else "tcp",
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=CELL_TIMEOUT_SECONDS,
            startup_timeout=START_TIMEOUT_SECONDS,
            record_timing=False,
            resources={"metadata": {"path": str(directory.resolve())}},
        )
        try:
            client.execute(env=_kernel_environment(scratch), cleanup_kc=True)
        except (CellControlSignal, CellTimeoutError, DeadKernelError, OSError, RuntimeError) as error:
            raise NotebookFailure(_last_line(error)) from error
    notebook.metadata.language_info = {"name": "python"}


def as_text(notebook: Any) -> str:  # noqa: ANN401 - nbformat's own node type, untyped
    """Write a notebook as the text of its file, after checking it against the format."""
    import nbformat

    form: Any = nbformat  # without types of its own
    form.validate(notebook)
    return str(form.writes(notebook)) + "\n"


def as_triple_quoted(text: str) -> str:
    """Write text as a Python literal that keeps its lines."""
    escaped = re.sub(r'"(?="|\Z)', r"\"", text.replace("\\", "\\\\"))
    return f'"""\\\n{escaped}"""'


def _kernel_environment(scratch: str) -> dict[str, str]:
    return os.environ | {
        "IPYTHONDIR": scratch,
        "JUPYTER_RUNTIME_DIR": scratch,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
