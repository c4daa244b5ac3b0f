"""Content of a report, independent of the page: headline, sections of text, tables, claims and figures, and method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Block",
    "Claim",
    "Claims",
    "Code",
    "Entry",
    "Figure",
    "Figures",
    "Kind",
    "Report",
    "Rows",
    "Section",
    "Table",
    "Text",
    "Verdict",
    "as_json",
    "plain",
]

Verdict = Literal["met", "not met", "not measured", "not measured: at chance"]
Kind = Literal["lines", "dot_ranges", "bars", "points"]
RowT = TypeVar("RowT")
Rows: TypeAlias = "pd.DataFrame | Sequence[Mapping[str, Any]]"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An expectation and its verdict."""

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
class Claims:
    """Claims, each with what was measured."""

    kind: ClassVar[str] = "claims"
    items: Sequence[Claim]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of a table."""

    text: str
    note: str = ""
    """Smaller, under the text."""
    tone: str = ""
    """``bad``, ``strong``, ``muted``, ``chip`` (``chip error``, ``chip warning``) for a word in a frame, ``series-0``
    to ``series-5`` for the color of a figure's line, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names the row; on a narrow screen each row becomes a card."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]

    @classmethod
    def of(cls, items: Iterable[RowT], columns: Mapping[str, Callable[[RowT], Entry | str]]) -> Table:
        """Lay out one row for each item.

        Args:
            items: in the order of the rows.
            columns: head of a column -> what it shows of an item.
        """
        found = [[make(item) for make in columns.values()] for item in items]
        rows = [[Entry(text=one) if isinstance(one, str) else one for one in row] for row in found]
        return cls(columns=tuple(columns), rows=rows)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with what the reader has to know about it."""

    name: str
    """File name without its ending, and the prefix of every id on the page."""
    title: str
    caption: str
    kind: Kind
    """A function of :mod:`steadynorm.reporting.charts`."""
    data: Rows
    """A row for each measured value."""
    options: Mapping[str, Any]
    """What the function takes besides the data: names of columns, orders."""
    marks: Mapping[str, Rows] = field(default_factory=dict)
    """Further tables that it takes: crosses, rings."""


@dataclass(frozen=True)
class Figures:
    """Figures, side by side where there is room."""

    kind: ClassVar[str] = "figures"
    items: Sequence[Figure]


Block = Text | Code | Table | Claims | Figures


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading."""

    title: str
    """Text of the heading."""
    blocks: Sequence[Block | None]
    """None, and figures or claims that hold nothing, are left out."""
    short: str = ""
    """In the page's list of sections, where it is not the title."""

    @property
    def key(self) -> str:
        """Its anchor: letters, digits and hyphens."""
        words = "".join(one if one.isalnum() else " " for one in (self.short or self.title).lower()).split()
        return "-".join(words)

    @property
    def shown(self) -> list[Block]:
        """The blocks that hold something."""
        return [one for one in self.blocks if one is not None and (not isinstance(one, Figures | Claims) or one.items)]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one report says for itself; configuration, machine and command are added to it."""

    headline: str
    """The finding in one sentence of at most 90 characters, without a full stop."""
    lead: str
    """The basis of the finding: network, data, seeds."""
    table: Table
    """Table for the terminal, with few columns."""
    sections: Sequence[Section]
    """In their order; one without blocks is left out."""
    method: Sequence[str]
    """How it was measured, as paragraphs."""
    finished: bool
    """Whether everything that was planned is measured."""
    findings: dict[str, Any] = field(default_factory=dict)
    """For ``summary.json``: dataclasses, numbers, text, lists and mappings of them."""

    @property
    def blocks(self) -> Iterator[Block]:
        """Every block."""
        for section in self.sections:
            yield from section.shown

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure."""
        return tuple(one for block in self.blocks if isinstance(block, Figures) for one in block.items)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Every claim."""
        return tuple(one for block in self.blocks if isinstance(block, Claims) for one in block.items)


def as_json(head: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return the content of ``summary.json``: numbers or null, never NaN.

    Args:
        head: what the record says of itself: experiment, command, created, config, resolved, versions, machine.
        report: what it shows.
    """
    rows = [[cell.text for cell in row] for row in report.table.rows]
    content: dict[str, Any] = plain(
        {
            "experiment": head["experiment"],
            "finished": report.finished,
            "headline": report.headline,
            "table": {"columns": list(report.table.columns), "rows": rows},
            "expectations": [asdict(item) for item in report.claims],
            **report.findings,
            **{name: value for name, value in head.items() if name != "experiment"},
        }
    )
    return content


def plain(value: Any) -> Any:  # noqa: ANN401 (JSON is any of several types, nested)
    """Make JSON of a value: null of what is not finite, a list of a tuple, text of keys, its fields of a dataclass."""
    if is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
