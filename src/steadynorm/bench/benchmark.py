"""What every benchmark is: flags, cases, a measurement of each, and how its record is read; and how one runs."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from steadynorm.bench.display import Display
from steadynorm.bench.record import Record, begin_record, flag, keep_record
from steadynorm.lab.machine import choose_device, choose_threads
from steadynorm.reporting.failure import UserError

__all__ = ["Benchmark", "Contents", "Flags", "check_config"]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every benchmark can be told."""

    threads: int | None = None
    """Threads of all providers; default: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    out: Path | None = None
    """Directory for the record, bench_COMMAND_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


Contents = tuple[str, Iterable[Any], Mapping[str, Callable[[Any], str]]]
"""What a table shows, an item for each row, and head -> what the column shows of an item."""

FlagsT = TypeVar("FlagsT", bound=Flags)
CaseT = TypeVar("CaseT")


class Benchmark(ABC, Generic[FlagsT, CaseT]):
    """One benchmark. A row is what was measured on a case, as the record holds it; everything shown is made of rows."""

    name: ClassVar[str]
    """Of its records."""
    command: ClassVar[str]
    """``steadynorm bench COMMAND``."""
    summary: ClassVar[str]
    """In a few words, for help."""
    rows: ClassVar[str]
    """Key of the record that has the rows."""
    flags: type[FlagsT]

    def serves(self, config: Flags) -> bool:
        """Say whether the flags ask for this benchmark."""
        return type(config) is self.flags

    @abstractmethod
    def plan(self, config: FlagsT, head: Record, display: Display) -> Sequence[CaseT]:
        """Give the cases; add what else the record says of them to its head, and show it.

        Raises:
            UserError: the cases cannot be measured.
        """

    @abstractmethod
    def measure(self, case: CaseT, config: FlagsT, head: Record) -> Record:
        """Give the row of a case: first whether results agree, and speeds only where they do."""

    @abstractmethod
    def lines(self, row: Record) -> list[str]:
        """Show a row."""

    @abstractmethod
    def table(self, record: Record) -> Contents:
        """Give what :func:`steadynorm.bench.table.markdown` makes a page's table of."""

    def label(self, case: CaseT) -> str:
        """Name a case while it is measured."""
        return str(case)

    def summarize(self, rows: Sequence[Record], head: Record) -> Record:
        """Give what the rows come to, as further entries of the record."""
        return {}

    def closing(self, record: Record) -> list[str]:
        """Give the lines after the last row."""
        return []

    def disagreeing(self, record: Record) -> Sequence[str]:
        """Name the cases whose results disagree."""
        return ()

    def run(self, config: FlagsT, display: Display) -> Record:
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
        head = begin_record(self.name, self.command, config, device)
        cases = self.plan(config, head, display)
        rows: list[Record] = []
        try:
            for number, case in enumerate(cases, start=1):
                display.doing(self.label(case), number=number, of=len(cases))
                rows.append(self.measure(case, config, head))
                for line in self.lines(rows[-1]):
                    display.line(line)
        except KeyboardInterrupt:
            self._finish(head, rows, config.out, display, complete=False)
            raise
        return self._finish(head, rows, config.out, display, complete=True)

    def _finish(
        self, head: Record, rows: Sequence[Record], out: Path | None, display: Display, *, complete: bool
    ) -> Record:
        record = head | {"complete": complete} | self.summarize(rows, head) | {self.rows: rows}
        return keep_record(out if rows else None, record, display)


def check_config(config: Any) -> None:  # noqa: ANN401 (any command's dataclass)
    """Refuse what measures nothing, and make the directory of the record while nothing is lost yet.

    Raises:
        UserError: a list is empty or repeats a value, a number is not positive, or there are too few cores.
    """
    for field in dataclasses.fields(config):
        name, value = flag(field.name), getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if field.default and not values:
            raise UserError(f"{name}: at least one value is needed.")
        if len(set(values)) < len(values):
            raise UserError(f"{name}: every value may appear once, got {' '.join(map(str, values))}.")
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
