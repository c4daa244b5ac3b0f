"""A report as a notebook: its data inside, executed with this interpreter, the same bytes every time."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from steadynorm.reporting.report import Block, Claims, Code, Entry, Figure, Figures, Report, Section, Text

__all__ = ["CellSource", "NotebookFailure", "as_text", "execute", "make", "make_notebook"]

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


SETUP = """\
# Everything below needs pandas and Altair alone; with vl-convert-python charts become pictures that any viewer shows.
import io
from importlib.util import find_spec

if find_spec("vl_convert"):
    alt.renderers.enable("png", scale_factor=2)


def table(text):
    return pd.read_csv(io.StringIO(text))
"""


NETWORKS = """\
from pathlib import Path

try:
    from safetensors.numpy import load_file
except ImportError:
    load_file = None
found = sorted(Path("checkpoints").glob("*.safetensors"))
for path in found[:2] if load_file else []:
    tensors = load_file(path)
    print(f"{path.name}: {len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} numbers")
    for name, tensor in tensors.items():
        running = f"  from {tensor.min():.4g} to {tensor.max():.4g}" if ".running_" in name else ""
        print(f"  {name:<36} {tensor.shape!s:<18} {tensor.dtype}{running}")
print(f"{len(found)} trained networks are in checkpoints/, in the directory that this notebook was made in.")
"""


def make_notebook(head: dict[str, Any], report: Report) -> Any:  # noqa: ANN401 - nbformat's own node type, untyped
    """Make the notebook of a report, not yet run.

    Args:
        head: what the record says of itself.
        report: what it says.
    """
    charts = resources.files("steadynorm.reporting").joinpath("charts.py").read_text(encoding="utf-8")
    cells = [
        _prose("about", f"# {_plain(report.headline)}", _plain(report.lead), f"Made again with: `{head['command']}`")
    ]
    cells += [CellSource(name="charts", kind="code", source=f"{charts}\n\n{SETUP}")]
    for section in report.sections:
        blocks = [cell for number, block in enumerate(section.shown) for cell in _cells(section, number, block)]
        cells += [_prose(section.key, f"## {_plain(section.title)}"), *blocks] if blocks else []
    cells += [_prose("method", "## How it was measured", *map(_plain, report.method))]
    return make(
        [
            *cells,
            _prose("networks", "## The trained networks"),
            CellSource(name="tensors", kind="code", source=NETWORKS),
        ]
    )


def _cells(section: Section, number: int, block: Block) -> Iterator[CellSource]:
    """Yield the cells of a block: code for figures, prose for all else."""
    name = f"{section.key}-{number}"
    if isinstance(block, Figures):
        yield from (_chart(figure) for figure in block.items)
    elif isinstance(block, Text):
        yield _prose(name, _plain(block.text))
    elif isinstance(block, Code):
        yield _prose(name, f"{_plain(block.name)}", f"```\n{block.text}\n```")
    elif isinstance(block, Claims):
        yield _prose(
            name, "\n".join(f"- **{one.verdict}**: {_plain(f'{one.claim} {one.measured}')}" for one in block.items)
        )
    else:
        rows = [block.columns, ["---"] * len(block.columns), *([_cell(one) for one in row] for row in block.rows)]
        yield _prose(name, "\n".join(f"| {' | '.join(row)} |" for row in rows))


def _cell(cell: Entry) -> str:
    return _plain(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def _chart(figure: Figure) -> CellSource:
    """Write the call that draws a figure, with its data as text."""
    marks = {name: rows for name, rows in figure.marks.items() if len(rows)}
    tables = {"data": figure.data, **marks}
    data = [
        f"{name} = table({_as_triple_quoted(pd.DataFrame(rows).to_csv(index=False))})" for name, rows in tables.items()
    ]
    given = [f"    {name}={value!r}," for name, value in figure.options.items()]
    given += [f"    {name}={name}," for name in marks]
    call = [f"{figure.kind}(", "    data,", *given, f").properties(title={figure.title!r})"]
    return CellSource(name=f"figure-{figure.name.replace('_', '-')}", kind="code", source="\n".join([*data, *call]))


def _prose(name: str, *paragraphs: str) -> CellSource:
    return CellSource(name=name, kind="markdown", source="\n\n".join(paragraphs))


def _plain(text: str) -> str:
    """Keep what comes from a record from being read as markup."""
    return re.sub(r"([\\`*_\[\]<>$&~|])", r"\\\1", text)


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


def _as_triple_quoted(text: str) -> str:
    """Write text as a Python literal that keeps its lines."""
    escaped = re.sub(r'"(?="|\Z)', r"\"", text.replace("\\", "\\\\"))
    return f'"""\\\n{escaped}"""'


def _kernel_environment(scratch: str) -> dict[str, str]:
    return os.environ | {
        "IPYTHONDIR": scratch,
        "JUPYTER_RUNTIME_DIR": scratch,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
