"""What was measured on a case, as types."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steadynorm.bench.agreement import Agreement
from steadynorm.bench.cases import COPIES, Case
from steadynorm.bench.memory import Saved
from steadynorm.bench.timing import Sample, Spread, spread
from steadynorm.ops.dispatch import Choice

__all__ = ["CaseResult", "SideResult", "case_to_json", "make_side_result"]


@dataclass(frozen=True, kw_only=True)
class SideResult:
    """One side of a case."""

    ms: Spread
    """Forward and backward together; on a GPU, time on the device."""
    forward_ms: float | None
    """Median of the forward alone; None for the copy."""
    backward_ms: float | None
    host_ms: float
    """Median of the calling thread's time."""
    samples: int
    gb_per_s: float
    """10⁹ bytes per second that would be moved if nothing beyond the floor were."""
    peak_bytes: int | None = None
    """See :func:`steadynorm.bench.memory.peak_bytes`; None for the copy."""
    saved: Saved | None = None


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """All sides of a case; none where ours disagrees with the reference."""

    case: Case
    backend: Choice
    """Which implementation of our kernels ran, and why."""
    agreement: Agreement
    sides: dict[str, SideResult]
    """By name: copy, torch, ours, and compile where asked for."""

    @property
    def ratio(self) -> float:
        """How many times as fast as torch's layers ours is."""
        return self.sides["torch"].ms.median / self.sides["ours"].ms.median

    @property
    def ratio_to_compile(self) -> float | None:
        """Likewise, beside torch.compile of the same layers; None where it was not asked for."""
        return self.sides["compile"].ms.median / self.sides["ours"].ms.median if "compile" in self.sides else None

    @property
    def floor_share(self) -> float:
        """Time that the least traffic takes at the speed of the copy, as a share of ours."""
        return COPIES[self.case.op] * self.sides["copy"].ms.median / self.sides["ours"].ms.median


def make_side_result(
    samples: Sequence[Sample], *, floor_bytes: int, peak_bytes: int | None = None, saved: Saved | None = None
) -> SideResult:
    """Boil a side's samples down."""
    ms = spread([sample.total_ms for sample in samples])
    parts = np.median([sample.parts_ms for sample in samples], axis=0).tolist()
    forward, backward = parts if len(parts) == 2 else (None, None)
    return SideResult(
        ms=ms,
        forward_ms=forward,
        backward_ms=backward,
        host_ms=float(np.median([sample.host_ms for sample in samples])),
        samples=len(samples),
        gb_per_s=floor_bytes / ms.median / 1e6,
        peak_bytes=peak_bytes,
        saved=saved,
    )


def case_to_json(result: CaseResult) -> dict[str, Any]:
    """Give the result with what follows from it: whether it agrees, ratios and share."""
    agreement = {"agrees": result.agreement.agrees} | dataclasses.asdict(result.agreement)
    compared = (
        {"ratio": result.ratio, "ratio_to_compile": result.ratio_to_compile, "floor_share": result.floor_share}
        if result.sides
        else {}
    )
    return (
        dataclasses.asdict(result.case)
        | {"x_bytes": result.case.x_bytes, "agreement": agreement}
        | dataclasses.asdict(result.backend)
        | {"sides": {name: dataclasses.asdict(side) for name, side in result.sides.items()}}
        | compared
    )
