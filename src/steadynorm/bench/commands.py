"""The commands of the bench, with their flags."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from steadynorm.bench import inference, kernels, layers, step, workers
from steadynorm.bench.benchmark import Benchmark, Flags
from steadynorm.bench.moved import MOVED, moved_record
from steadynorm.bench.record import Json, read_record
from steadynorm.bench.table import markdown
from steadynorm.commands import Command
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import open_display
from steadynorm.reporting.report import Table

__all__ = ["BENCHMARKS", "COMMANDS", "MOVED", "SUMMARY", "TableConfig", "table_of"]

SUMMARY = "Speed and memory of the layers, compared with torch's own."
DISAGREES = 1
"""Exit status if ours disagrees with the reference; such cases are not timed."""

BENCHMARKS: tuple[Benchmark[Any, Any], ...] = tuple(
    module.BENCHMARK for module in (kernels, layers, step, inference, workers)
)
"""All benchmarks; command line, help, tables and tests are made from this list."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Print the record of a bench as a Markdown table."""

    record: Annotated[Path, tyro.conf.Positional]
    """A file that --out has written."""


def table_of(record: Json) -> str:
    """Turn a record into a table for a page.

    Raises:
        UserError: no benchmark writes such records.
    """
    name = record["bench"]
    benchmark = next((one for one in BENCHMARKS if one.name == name), None)
    if benchmark is None and name not in MOVED:
        raise UserError(f"no table is known for a record of {name!r}.")
    try:
        return markdown(record, *(benchmark.table(record) if benchmark else _old_table(record)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"no table can be made of this record of {name}: {error!r}.") from error


def _old_table(record: Json) -> tuple[str, Table]:
    """Return the table of a record from before the benchmark became an experiment."""
    from steadynorm.lab.experiments import EXPERIMENTS  # needs packages of the lab

    report = EXPERIMENTS[record["bench"]].describe(moved_record(record))
    return report.lead.removesuffix("."), report.table


def _measure(config: Flags) -> int:
    """Run the benchmark with these flags; with --json standard output holds only the record."""
    benchmark = next(one for one in BENCHMARKS if one.flags is type(config) and one.serves(config))
    with open_display(stream=sys.stderr if config.json else sys.stdout, timed=True) as display:
        record = benchmark.run(config, display)
    if config.json:
        print(json.dumps(record, indent=1))
    else:
        print("".join(f"{line}\n" for line in benchmark.closing(record)), end="")
    return DISAGREES if benchmark.disagreeing(record) else 0


def _table(config: TableConfig) -> None:
    print(table_of(read_record(config.record)), end="")


COMMANDS: dict[str, Command] = {one.command or one.name: (one.flags, _measure) for one in BENCHMARKS}
COMMANDS["table"] = (TableConfig, _table)
