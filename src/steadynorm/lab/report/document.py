"""What a report says, before it is a page: sections of paragraphs, tables, verdicts and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from steadynorm.lab.records import Record, RunRecord
from steadynorm.lab.report.figure import Drawing
from steadynorm.lab.report.page import Table

__all__ = [
    "Block",
    "Code",
    "Expectation",
    "Expectations",
    "Figures",
    "Report",
    "Section",
    "Text",
    "Verdict",
    "all_measured",
    "as_json",
    "expected",
    "run_as_json",
]

Verdict = Literal["met", "not met", "not measured", "not measured: at chance"]


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One expectation and its outcome."""

    claim: str
    verdict: Verdict
    measured: str
    """The numbers behind the verdict, as a sentence."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """Text as it stands, with a name above it."""

    kind: ClassVar[str] = "code"
    name: str
    text: str


@dataclass(frozen=True)
class Expectations:
    """Expectations beside what was measured."""

    kind: ClassVar[str] = "expectations"
    items: Sequence[Expectation]


@dataclass(frozen=True)
class Figures:
    """Figures, side by side where there is room."""

    kind: ClassVar[str] = "figures"
    drawings: Sequence[Drawing]


Block = Text | Code | Table | Expectations | Figures


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading."""

    key: str
    """Its anchor: letters, digits and hyphens, unique on the page."""
    title: str
    """Of the heading."""
    blocks: Sequence[Block]
    short: str = ""
    """In the page's list of sections, where it is not the title."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one experiment's report says for itself; configuration, machine and command are added to it."""

    headline: str
    """The finding in one sentence, without a full stop."""
    lead: str
    """On what it rests: network, data, seeds."""
    table: Table
    """What a terminal shows: a handful of columns."""
    sections: Sequence[Section]
    """In their order; one without blocks is left out."""
    method: Sequence[str]
    """How it was measured, as paragraphs."""
    finished: bool
    """Whether everything that was planned is measured."""
    findings: dict[str, Any] = field(default_factory=dict)
    """For ``summary.json``: dataclasses, numbers, text, lists and mappings of them."""

    @property
    def drawings(self) -> Iterator[Drawing]:
        """Every figure."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Figures):
                    yield from block.drawings

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """Every expectation."""
        blocks = [block for section in self.sections for block in section.blocks if isinstance(block, Expectations)]
        return tuple(item for block in blocks for item in block.items)


def as_json(record: Record, report: Report) -> dict[str, Any]:
    """Give the content of ``summary.json``: numbers or null, never NaN."""
    rows = [[cell.text for cell in row] for row in report.table.rows]
    content: dict[str, Any] = _plain(
        {
            "experiment": record.experiment,
            "finished": report.finished,
            "headline": report.headline,
            "table": {"columns": list(report.table.columns), "rows": rows},
            "expectations": [asdict(item) for item in report.expectations],
            **report.findings,
            "command": record.command,
            "created": record.created,
            "config": record.config,
            "resolved": record.resolved,
            "versions": record.versions,
            "machine": record.machine,
        }
    )
    return content


def expected(*blocks: Block) -> Section:
    """Make the section that holds what was expected against what was measured; left out where there is nothing."""
    return Section(
        key="expectations", title="What was expected, and what was measured", short="Expectations", blocks=blocks
    )


def all_measured(record: Record) -> bool:
    """Whether every network has ended and every cell that was planned behind them is measured."""
    ended = all(run.status in ("finished", "diverged") for run in record.runs)
    return ended and bool(record.cells) and all(cell.is_measured for cell in record.cells)


def run_as_json(run: RunRecord) -> dict[str, Any]:
    """Give a run with its epochs; the norms of single layers stay in their own table."""
    content = asdict(run)
    del content["layers"]
    return content


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON is any of several types, nested)
    """Make JSON of a value: null of what is not finite, a list of a tuple, text of keys."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
