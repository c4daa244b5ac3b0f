"""The command line: one table, command -> typed function. A command parses, calls and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from steadynorm._overview import answer, check_installed

__all__ = ["main"]

NEEDED = ["PIL", "altair", "filelock", "huggingface_hub", "ipykernel", "jinja2", "msgspec", "nbclient"]
NEEDED += ["nbformat", "pandas", "pyarrow", "rich", "safetensors", "sklearn", "tensorboard", "tyro", "vl_convert"]
check_installed(NEEDED, "'steadynorm[lab]'")

import tyro  # noqa: E402 (after the check, so that a missing extra is one line)
from rich.console import Console  # noqa: E402

from steadynorm import __version__  # noqa: E402
from steadynorm.bench import commands as bench  # noqa: E402
from steadynorm.bench.warmup import WarmupConfig, warmup  # noqa: E402
from steadynorm.checkup import adapt as adapting  # noqa: E402
from steadynorm.checkup import recalibrate as recalibrating  # noqa: E402
from steadynorm.checkup.adapt_config import AdaptConfig  # noqa: E402
from steadynorm.checkup.command import explain, run_doctor  # noqa: E402
from steadynorm.checkup.config import DoctorConfig  # noqa: E402
from steadynorm.checkup.files import write_files  # noqa: E402
from steadynorm.checkup.recalibrate_config import RecalibrateConfig  # noqa: E402
from steadynorm.commands import Command, run_command  # noqa: E402
from steadynorm.deploy.command import ExportConfig, run_export  # noqa: E402
from steadynorm.deploy.report import build_export_report, missed_target  # noqa: E402
from steadynorm.examples import EXAMPLES  # noqa: E402
from steadynorm.lab.experiment import Experiment, explain_stop  # noqa: E402
from steadynorm.lab.experiments import EXPERIMENTS  # noqa: E402
from steadynorm.lab.machine import reuse_memory  # noqa: E402
from steadynorm.lab.report import build_report  # noqa: E402
from steadynorm.lab.workers import is_first, joined, on_first  # noqa: E402
from steadynorm.printable import printable  # noqa: E402
from steadynorm.reporting.diagnosis import as_content, list_checks, show  # noqa: E402
from steadynorm.reporting.lines import send_line  # noqa: E402
from steadynorm.reporting.progress import open_display  # noqa: E402
from steadynorm.reporting.records import read_config  # noqa: E402
from steadynorm.reporting.results import fitting_table, read_summary, verdict_lines  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Rebuild the report of a run directory from its records alone."""

    directory: Annotated[Path, tyro.conf.Positional]
    """The directory that an experiment wrote."""
    json: bool = False
    """Print the summary as JSON on standard output."""


def _command(experiment: Experiment[Any]) -> Callable[[Any], None]:
    """Make the command of an experiment: run it and write its report."""

    def command(config: Any) -> None:  # noqa: ANN401 (each experiment's own flags)
        reuse_memory()
        with joined(), open_display(shown=is_first()) as display:
            directory = experiment.run(config, display)
            display.message("making the report")
            with explain_stop(["report", str(directory)], directory, display):
                page = on_first(lambda: build_report(directory))
        if is_first() and config.json:
            send_line("summary", json.loads((page.parent / "summary.json").read_text()))
        elif is_first():
            _show(page)

    return command


def export(config: ExportConfig) -> int:
    """Export a model and report it; return 1 if it misses the requested latency."""
    with open_display() as display:
        directory = run_export(config, display)
    _show(build_export_report(directory), as_json=config.json)
    return int(missed_target(directory))


def doctor(config: DoctorConfig) -> int:
    """Diagnose a model; return 1 if a fault worse than a note is found or remains."""
    if config.list:
        list_checks(Console())
        return 0
    if config.explain is not None:
        print(explain(config.explain), end="")
        return 0
    with open_display() as display:
        found = run_doctor(config, display)
    write_files(config, found)
    if config.json == ():
        print(json.dumps(as_content(found), indent=2, allow_nan=False))
    else:
        show(found, Console())
    return int(not found.is_healthy)


def adapt(config: AdaptConfig) -> None:
    """Predict a stream with and without the gate."""
    with open_display() as display:
        found = adapting.run_adapt(config, display)
    adapting.write_adaptation(config.json or (), found)
    if config.json == ():
        print(json.dumps(adapting.as_json(found), indent=2, allow_nan=False))
    else:
        adapting.show_adaptation(found, Console())


def recalibrate(config: RecalibrateConfig) -> None:
    """Recalibrate a model's running statistics and write its weights."""
    with open_display() as display:
        found = recalibrating.run_recalibrate(config, display)
    recalibrating.write_recalibration(config.json or (), found)
    if config.json == ():
        print(json.dumps(recalibrating.as_json(found), indent=2, allow_nan=False))
    else:
        recalibrating.show_recalibration(found, Console())


def report(config: ReportConfig) -> None:
    """Rebuild a report."""
    exported = read_config(config.directory).experiment == "export"
    _show((build_export_report if exported else build_report)(config.directory), as_json=config.json)


# command -> (flags, function)
COMMANDS: dict[str, Command] = {
    **{name: (one.config, _command(one)) for name, one in EXPERIMENTS.items()},
    "adapt": (AdaptConfig, adapt),
    "doctor": (DoctorConfig, doctor),
    "export": (ExportConfig, export),
    "recalibrate": (RecalibrateConfig, recalibrate),
    "report": (ReportConfig, report),
    "warmup": (WarmupConfig, warmup),
    **{f"bench {name}": command for name, command in bench.COMMANDS.items()},
    **{f"bench {name}": (EXPERIMENTS[name].config, _command(EXPERIMENTS[name])) for name in bench.MOVED},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit; see :func:`steadynorm.commands.run_command`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if (status := answer(arguments, version=__version__)) is not None:
        sys.exit(status)
    run_command(
        COMMANDS,
        arguments,
        prog="steadynorm",
        description="Experiments on normalization in PyTorch, each a single command that ends in a report; and speeds.",
        groups={"bench": bench.SUMMARY},
        examples=EXAMPLES,
    )


def _show(page: Path, *, as_json: bool = False) -> None:
    """Print the results and the path of the report."""
    summary = (page.parent / "summary.json").read_text()
    if as_json:
        print(summary, end="")
        return
    console, content = Console(), read_summary(summary)
    console.print(content["headline"], markup=False, highlight=False)
    console.print(fitting_table(content, console))
    for line in verdict_lines(content):
        console.print(line, markup=False, highlight=False)
    console.print(f"report: {printable(str(page))}", markup=False, soft_wrap=True)
