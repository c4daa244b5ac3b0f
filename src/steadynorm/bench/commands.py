"""The commands of the bench: command -> its flags and what it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from steadynorm.bench import kernels as kernels_bench
from steadynorm.bench import layers as layers_bench
from steadynorm.bench import recalibration as recalibration_bench
from steadynorm.bench import statistics as statistics_bench
from steadynorm.bench import step as step_bench
from steadynorm.bench import workers as workers_bench
from steadynorm.bench.display import Display, open_display
from steadynorm.bench.record import Record, read_record
from steadynorm.bench.table import markdown, summary_lines

__all__ = ["COMMANDS", "SUMMARY", "TableConfig"]

SUMMARY = "Speed and memory of the layers beside torch's own."
DISAGREES = 1
"""Exit status where ours is not what the reference says; nothing is timed there."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Print the record of a bench as a Markdown table."""

    record: Annotated[Path, tyro.conf.Positional]
    """A file that --out has written."""


def kernels(config: kernels_bench.KernelsConfig) -> int:
    """Time the layers alone."""
    record = _measure(config, kernels_bench.run)
    if not config.json:
        print(*summary_lines(record), sep="\n")
    return DISAGREES if record["summary"]["disagreeing"] else 0


def layers(config: layers_bench.LayersConfig) -> int:
    """Time the family's layers beside plain batch norm."""
    record = _measure(config, layers_bench.run)
    if not config.json:
        print(*layers_bench.layer_lines(record), sep="\n")
    return DISAGREES if record["disagreeing"] else 0


def step(config: step_bench.StepConfig) -> int:
    """Time whole training steps, or forwards."""
    record = _measure(config, step_bench.run)
    return 0 if config.inference or all(network["agrees"] for network in record["networks"]) else DISAGREES


def statistics(config: statistics_bench.StatisticsConfig) -> None:
    """Follow the batch statistics of a training."""
    record = _measure(config, statistics_bench.run)
    if not config.json:
        print(*statistics_bench.statistics_lines(record), sep="\n")


def recalibration(config: recalibration_bench.RecalibrationConfig) -> None:
    """Measure a checkpoint's running statistics anew."""
    record = _measure(config, recalibration_bench.run)
    if not config.json:
        print(*recalibration_bench.recalibration_lines(record), sep="\n")


def workers(config: workers_bench.WorkersConfig) -> None:
    """Time training on several workers."""
    record = _measure(config, workers_bench.run)
    if not config.json:
        print(*workers_bench.workers_lines(record), sep="\n")


def table(config: TableConfig) -> None:
    """Make a record readable."""
    print(markdown(read_record(config.record)), end="")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int | None]]] = {
    "kernels": (kernels_bench.KernelsConfig, kernels),
    "layers": (layers_bench.LayersConfig, layers),
    "step": (step_bench.StepConfig, step),
    "statistics": (statistics_bench.StatisticsConfig, statistics),
    "recalibration": (recalibration_bench.RecalibrationConfig, recalibration),
    "workers": (workers_bench.WorkersConfig, workers),
    "table": (TableConfig, table),
}


def _measure(config: Any, run: Callable[[Any, Display], Record]) -> Record:  # noqa: ANN401 (either bench's flags)
    """Run a bench; with --json standard output holds the record alone."""
    with open_display(sys.stderr if config.json else sys.stdout) as display:
        record = run(config, display)
    if config.json:
        print(json.dumps(record, indent=1))
    return record
