"""What shift costs: by the decay of stored statistics, and by each way to adapt on each stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.experiments.shift import CLEAN, KINDS, MIXED, SWAPPED
from steadynorm.lab.records import CellRecord, Record

__all__ = [
    "STORED",
    "Decayed",
    "Shown",
    "by_stream",
    "decays",
    "kept_share",
    "kinds_of",
    "mean_error",
    "published_share",
    "shown",
    "swap_changes",
    "worst",
]

STORED = "stored"


@dataclass(frozen=True, kw_only=True)
class Decayed:
    """The stored statistics of one decay under one shift, over the seeds."""

    decay: str
    shift: str
    severity: int
    error: Spread


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One way to adapt on one stream, over the seeds."""

    method: str
    kind: str
    """How images arrive; ``mixed`` where every batch holds all corruptions."""
    shift: str
    severity: int
    images: int
    error: Spread
    gain: Spread | None
    """Error of the stored statistics less that, seed by seed on the same images; None where they were not measured."""


def decays(record: Record) -> list[Decayed]:
    """Collect the part on decays."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for cell in _cells(record, "decays"):
        for decay, error in _errors(cell).items():
            found.setdefault((decay, str(cell.factors["shift"]), int(cell.factors["severity"])), []).append(error)
    return [
        Decayed(decay=decay, shift=shift, severity=severity, error=_spread(values))
        for (decay, shift, severity), values in found.items()
    ]


def shown(record: Record) -> list[Shown]:
    """Collect every way to adapt on every stream, in the order in which they were measured."""
    streams: dict[tuple[str, str, int], list[CellRecord]] = {}
    for cell in _cells(record, "stream"):
        shift = str(cell.factors["shift"])
        kind = MIXED if shift == MIXED else str(cell.factors["kind"])
        streams.setdefault((kind, shift, int(cell.factors["severity"])), []).append(cell)
    return [
        _shown(str(method), kind, shift, severity, cells)
        for (kind, shift, severity), cells in streams.items()
        for method in record.config["methods"]
    ]


def kinds_of(found: Sequence[Shown]) -> list[str]:
    """List the kinds of streams in the house's order."""
    present = {one.kind for one in found}
    return [kind for kind in (*KINDS[:1], MIXED, *KINDS[1:]) if kind in present]


def kept_share(found: Iterable[Shown], method: str) -> float | None:
    """Give the share of batch statistics' gain that a way keeps on corrupted, well-mixed streams of batches.

    Returns:
        sum of its gains over the sum of theirs, where theirs are positive; None where there are none.
    """
    gains: dict[tuple[str, int], dict[str, float]] = {}
    for one in found:
        if one.kind == "iid" and one.shift != CLEAN and one.gain is not None:
            gains.setdefault((one.shift, one.severity), {})[one.method] = one.gain.mean
    pairs = [each for each in gains.values() if each.get("batch", 0) > 0 and method in each]
    return sum(each[method] for each in pairs) / sum(each["batch"] for each in pairs) if pairs else None


def worst(found: Iterable[Shown], method: str) -> Shown | None:
    """Find the stream on which a way loses most, or gains least, beside the stored statistics."""
    mine = [one for one in found if one.method == method and one.gain is not None]
    return min(mine, key=_gain, default=None)


def mean_error(found: Iterable[Shown]) -> float | None:
    """Average errors over streams, each counting alike; None of none."""
    errors = [one.error.mean for one in found]
    return sum(errors) / len(errors) if errors else None


def by_stream(found: Sequence[Shown]) -> list[dict[str, Any]]:
    """Lay the ways out stream by stream for ``summary.json``: mean error, and gain as mean, lowest and highest seed."""
    streams: dict[tuple[str, str, int], dict[str, Any]] = {}
    for one in found:
        head = {"kind": one.kind, "shift": one.shift, "severity": one.severity, "images": one.images, "n": one.error.n}
        stream = streams.setdefault((one.kind, one.shift, one.severity), head | {"error": {}, "gain": {}})
        stream["error"][one.method] = round(one.error.mean, 6)
        if one.gain is not None:
            stream["gain"][one.method] = [round(value, 6) for value in (one.gain.mean, one.gain.low, one.gain.high)]
    return list(streams.values())


def published_share(record: Record) -> float:
    """Give the share of corrupted streams whose images are CIFAR-10-C's own."""
    rows = [row for cell in _cells(record, "stream") if cell.factors["severity"] for row in cell.measurements]
    values = [row.value for row in rows if row.quantity == "published"]
    return sum(values) / len(values) if values else 0.0


def swap_changes(found: Sequence[Decayed]) -> dict[str, float]:
    """Give by how much each decay's mean error grows where the labels of two classes are swapped."""
    clean = {one.decay: one.error.mean for one in found if one.shift == CLEAN}
    return {
        one.decay: one.error.mean - clean[one.decay] for one in found if one.shift == SWAPPED and one.decay in clean
    }


def _cells(record: Record, part: str) -> list[CellRecord]:
    return [cell for cell in record.cells if cell.factors["part"] == part and cell.is_measured]


def _errors(cell: CellRecord) -> dict[str, float]:
    return {row.subject: 1 - row.value for row in cell.measurements if row.quantity == "accuracy"}


def _shown(method: str, kind: str, shift: str, severity: int, cells: Sequence[CellRecord]) -> Shown:
    errors = [_errors(cell) for cell in cells]
    gains = [each[STORED] - each[method] for each in errors if STORED in each]
    images = min(int(row.value) for cell in cells for row in cell.measurements if row.quantity == "images")
    return Shown(
        method=method,
        kind=kind,
        shift=shift,
        severity=severity,
        images=images,
        error=_spread([each[method] for each in errors]),
        gain=spread(gains),
    )


def _spread(values: Sequence[float]) -> Spread:
    found = spread(values)
    assert found is not None  # accuracies are finite, and there is one at least
    return found


def _gain(one: Shown) -> float:
    assert one.gain is not None
    return one.gain.mean
