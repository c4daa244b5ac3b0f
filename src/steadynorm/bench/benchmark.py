"""What every benchmark is: flags, cases, a measurement of each, and how its record is read; and how one runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from steadynorm.bench.record import Json, begin_record, write_record
from steadynorm.lab.machine import choose_device, choose_threads
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import check_values, flag
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table

__all__ = ["Benchmark", "Flags", "check_config"]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The options of every benchmark."""

    threads: int | None = None
    """Threads of all providers; default: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is a GPU."""
    out: Path | None = None
    """Directory for the record, bench_COMMAND_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


FlagsT = TypeVar("FlagsT", bound=Flags)
CaseT = TypeVar("CaseT")


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[FlagsT, CaseT]):
    """A benchmark: everything that its command, its records, its table and its tests are made from.

    A row is what was measured on a case, as the record holds it; everything shown is made of rows.
    """

    name: str
    """Of its records."""
    command: str = ""
    """``steadynorm bench COMMAND``; default: its name."""
    flags: type[FlagsT]
    """The docstring is the command's help."""
    serves: Callable[[FlagsT], bool] = lambda config: True
    """Of several benchmarks with these flags, which one is asked for."""
    rows: str
    """Key of the record that has the rows."""
    plan: Callable[[FlagsT, Json, Display], Sequence[CaseT]]
    """Gives the cases; adds what else the record says of them to its head, and shows it."""
    label: Callable[[CaseT], str] = str
    """Names a case while it is measured."""
    measure: Callable[[CaseT, FlagsT, Json], Json]
    """Gives the row of a case, with the head of the record: first whether results agree, and speeds only if they do."""
    lines: Callable[[Json], list[str]]
    """Shows a row."""
    summarize: Callable[[Sequence[Json], Json], Json] = lambda rows, head: {}
    """Gives what the rows come to, as further entries of the record."""
    closing: Callable[[Json], list[str]] = lambda record: []
    """Shows the record's summary, after the last row."""
    disagreeing: Callable[[Json], Sequence[str]] = lambda record: ()
    """Names the cases whose results disagree."""
    table: Callable[[Json], tuple[str, Table]]
    """Gives what a page shows of a record: a few words on it, and a table."""

    def run(self, config: FlagsT, display: Display) -> Json:
        """Measure every case.

        Returns:
            the record, which has been written where ``out`` says so; a run that is interrupted writes what it has.

        Raises:
            UserError: what was asked for cannot be done.
        """
        check_config(config)
        device = choose_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        head = begin_record(self.name, self.command or self.name, config, device)
        cases = self.plan(config, head, display)
        rows: list[Json] = []
        try:
            for number, case in enumerate(cases, start=1):
                display.begin(self.label(case), number=number, of=len(cases))
                rows.append(self.measure(case, config, head))
                display.end(self.label(case))
                for line in self.lines(rows[-1]):
                    display.message(line)
        except KeyboardInterrupt:
            self._finish(head, rows, config.out, display, complete=False)
            raise
        return self._finish(head, rows, config.out, display, complete=True)

    def _finish(self, head: Json, rows: Sequence[Json], out: Path | None, display: Display, *, complete: bool) -> Json:
        record = head | {"complete": complete} | self.summarize(rows, head) | {self.rows: rows}
        if out is not None and rows:
            display.message(f"record: {write_record(out, record)}")
        return record


def check_config(config: Any) -> None:  # noqa: ANN401 (any command's dataclass)
    """Refuse what measures nothing, and make the directory of the record while nothing is lost yet.

    Raises:
        UserError: a list is empty or repeats a value, a number is not positive, or there are too few cores.
    """
    for field in dataclasses.fields(config):
        name, value = flag(field.name), getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        check_values(field.name, values, may_be_empty=not field.default)
        for one in values:
            if not isinstance(one, int | float) or isinstance(one, bool):
                continue
            if field.name == "seed" and one < 0:
                raise UserError(f"{name}: must be at least 0, got {one}.")
            if field.name != "seed" and not one > 0:
                raise UserError(f"{name}: must be positive, got {one}.")
    if getattr(config, "threads", None) is not None:
        choose_threads(config.threads)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
