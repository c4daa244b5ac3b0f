"""The command line: one table, command -> typed function. A command parses, calls and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

__all__ = ["main"]

NEEDED = ["PIL", "huggingface_hub", "ipykernel", "jinja2", "matplotlib", "nbclient", "nbformat", "pyarrow", "rich"]
NEEDED += ["tensorboard", "tyro"]
if missing := [name for name in NEEDED if find_spec(name) is None]:
    sys.exit(f"steadynorm: not installed: {', '.join(missing)}. Run: pip install 'steadynorm[lab]'")

import tyro  # noqa: E402 (behind the check, so that a missing extra is one line)
from rich.console import Console  # noqa: E402

from steadynorm.lab.experiment import explain_stop  # noqa: E402
from steadynorm.lab.experiments import compare as compare_experiment  # noqa: E402
from steadynorm.lab.failure import UserError  # noqa: E402
from steadynorm.lab.machine import reuse_memory  # noqa: E402
from steadynorm.lab.progress import open_display  # noqa: E402
from steadynorm.lab.report import build_report  # noqa: E402
from steadynorm.lab.results import results_table  # noqa: E402

CANNOT = 2
"""Exit status where what was asked for cannot be done."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


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
COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "compare": (compare_experiment.CompareConfig, compare),
    "report": (ReportConfig, report),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 it cannot be done (one line says why), 130 interrupted."""
    config = tyro.extras.subcommand_cli_from_dict(
        {name: flags for name, (flags, _) in COMMANDS.items()},
        prog="steadynorm",
        description="Experiments on normalization in PyTorch, each a single command that ends in a report.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    command = next(function for flags, function in COMMANDS.values() if isinstance(config, flags))
    try:
        command(config)
    except UserError as error:
        print(f"steadynorm: {error}", file=sys.stderr)
        sys.exit(CANNOT)
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "  # a failed write does not say where
        print(f"steadynorm: {place}{error.strerror}.", file=sys.stderr)
        sys.exit(CANNOT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _show(page: Path, *, as_json: bool) -> None:
    """Print what came out, and where it lies."""
    summary = (page.parent / "summary.json").read_text()
    if as_json:
        print(summary, end="")
        return
    console = Console()
    console.print(results_table(json.loads(summary)))
    console.print(f"report: {page}", markup=False, soft_wrap=True)
