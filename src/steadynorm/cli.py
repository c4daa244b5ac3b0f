"""The command line: one table, command -> typed function. A command parses, calls and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

__all__ = ["main"]

NEEDED = ["PIL", "huggingface_hub", "ipykernel", "jinja2", "matplotlib", "nbclient", "nbformat", "pyarrow", "rich"]
NEEDED += ["tensorboard", "tyro"]
if missing := [name for name in NEEDED if find_spec(name) is None]:
    sys.exit(f"steadynorm: not installed: {', '.join(missing)}. Run: pip install 'steadynorm[lab]'")

import tyro  # noqa: E402 (behind the check, so that a missing extra is one line)
from rich.console import Console  # noqa: E402

from steadynorm.bench import commands as bench  # noqa: E402
from steadynorm.commands import Command, run_command  # noqa: E402
from steadynorm.lab.experiment import explain_stop  # noqa: E402
from steadynorm.lab.experiments import compare as compare_experiment  # noqa: E402
from steadynorm.lab.machine import reuse_memory  # noqa: E402
from steadynorm.lab.progress import open_display  # noqa: E402
from steadynorm.lab.report import build_report  # noqa: E402
from steadynorm.lab.results import results_table  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Rebuild the report of a run directory from its records alone."""

    directory: Annotated[Path, tyro.conf.Positional]
    """What an experiment has written so far."""
    json: bool = False
    """Print the summary as JSON on standard output."""


def compare(config: compare_experiment.CompareConfig) -> None:
    """Run the comparison and report it."""
    reuse_memory()
    with open_display() as display:
        directory = compare_experiment.run(config, display)
        display.message("making the report")
        with explain_stop("compare", directory, display):
            page = build_report(directory)
    _show(page, as_json=config.json)


def report(config: ReportConfig) -> None:
    """Rebuild a report."""
    _show(build_report(config.directory), as_json=config.json)


# command -> (its flags, what it does)
COMMANDS: dict[str, Command] = {
    "compare": (compare_experiment.CompareConfig, compare),
    "report": (ReportConfig, report),
    **{f"bench {name}": command for name, command in bench.COMMANDS.items()},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit; see :func:`steadynorm.commands.run_command`."""
    run_command(
        COMMANDS,
        arguments,
        prog="steadynorm",
        description="Experiments on normalization in PyTorch, each a single command that ends in a report; and speeds.",
        groups={"bench": bench.SUMMARY},
    )


def _show(page: Path, *, as_json: bool) -> None:
    """Print what came out, and where it lies."""
    summary = (page.parent / "summary.json").read_text()
    if as_json:
        print(summary, end="")
        return
    console = Console()
    console.print(results_table(json.loads(summary)))
    console.print(f"report: {page}", markup=False, soft_wrap=True)
