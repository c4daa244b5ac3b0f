"""A benchmark: its flags, cases, measurements and record; and how one runs."""

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
    """A benchmark: the parts that its command, its records, its table and its tests are made of.

    A row holds the measurements of a case, as in the record; everything shown is made from rows.
    """

    name: str
    """Name in its records."""
    command: str = ""
    """``steadynorm bench COMMAND``; default: its name."""
    flags: type[FlagsT]
    """Class of its flags; the docstring is the command's help."""
    serves: Callable[[FlagsT], bool] = lambda config: True
    """Whether this is the requested one of several benchmarks with these flags."""
    rows: str
    """Key of the record that has the rows."""
    plan: Callable[[FlagsT, Json, Display], Sequence[CaseT]]
    """Returns the cases; adds further facts about them to the record's head, and shows them."""
    label: Callable[[CaseT], str] = str
    """Names a case while it is measured."""
    measure: Callable[[CaseT, FlagsT, Json], Json]
    """Returns the row of a case, given the record's head: agreement first, and speeds only if the results agree."""
    lines: Callable[[Json], list[str]]
    """Shows a row."""
    summarize: Callable[[Sequence[Json], Json], Json] = lambda rows, head: {}
    """Returns the summary of the rows, as further entries of the record."""
    closing: Callable[[Json], list[str]] = lambda record: []
    """Shows the record's summary, after the last row."""
    disagreeing: Callable[[Json], Sequence[str]] = lambda record: ()
    """Names the cases whose results disagree."""
    table: Callable[[Json], tuple[str, Table]]
    """Returns a caption and a table of a record for a page."""

    def run(self, config: FlagsT, display: Display) -> Json:
        """Measure every case.

        Returns:
            the record, also written to ``out`` if given; an interrupted run writes the rows it has.

        Raises:
            UserError: the flags do not allow a measurement.
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
    """Refuse flags that measure nothing, and make the directory of the record before any measurement.

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
