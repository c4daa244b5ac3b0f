"""What all cases come to, and whether it is what was aimed at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadynorm.bench.cases import DType, Layout, Op
from steadynorm.bench.results import CaseResult
from steadynorm.bench.targets import BIG_MB, Verdict, geometric_mean, judge_targets

__all__ = ["Extreme", "Picture", "Summary", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Extreme:
    """The smallest value, and where."""

    value: float
    case: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What some of the cases come to, of one operation; ratios are torch's time over ours."""

    op: Op
    dtype: DType | None
    """None where all are taken together, like ``layout``."""
    layout: Layout | None
    cases: int
    ratio: float
    """Geometric mean."""
    ratio_to_compile: float | None
    least_ratio: Extreme
    big_mb: int
    """From which size of x on a case is big, in 10⁶ bytes."""
    big_cases: int
    least_big_ratio: Extreme | None
    """None where no case is big."""
    least_big_share: Extreme | None
    """Share of the byte floor."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The end of a run."""

    disagreeing: list[str]
    """Cases without speeds."""
    unsteady: list[str]
    """Cases of which some side's 80th percentile is over twice its 20th: the machine had other things to do."""
    whole: list[Picture]
    """One per operation."""
    parts: list[Picture]
    """One per operation, dtype and layout."""
    verdicts: list[Verdict]


def summarize(results: Sequence[CaseResult], device: str) -> Summary:
    """Summarize all results of one device."""
    agreeing = [result for result in results if result.sides]
    ops = list(dict.fromkeys(result.case.op for result in agreeing))
    kinds = list(dict.fromkeys((one.case.op, one.case.dtype, one.case.layout) for one in agreeing))
    return Summary(
        disagreeing=[result.case.label for result in results if not result.sides],
        unsteady=[result.case.label for result in results if _is_unsteady(result)],
        whole=[_picture(agreeing, device, op, None, None) for op in ops],
        parts=[_picture(agreeing, device, *kind) for kind in kinds],
        verdicts=judge_targets(agreeing, device),
    )


def _picture(results: Sequence[CaseResult], device: str, op: Op, dtype: DType | None, layout: Layout | None) -> Picture:
    wanted = [
        one
        for one in results
        if one.case.op == op and dtype in (None, one.case.dtype) and layout in (None, one.case.layout)
    ]
    big = [result for result in wanted if result.case.x_bytes >= BIG_MB[device] * 1e6]
    to_compile = [result.ratio_to_compile for result in wanted if result.ratio_to_compile is not None]
    return Picture(
        op=op,
        dtype=dtype,
        layout=layout,
        cases=len(wanted),
        ratio=geometric_mean([result.ratio for result in wanted]),
        ratio_to_compile=geometric_mean(to_compile) if to_compile else None,
        least_ratio=_least(wanted, lambda result: result.ratio),
        big_mb=BIG_MB[device],
        big_cases=len(big),
        least_big_ratio=_least(big, lambda result: result.ratio) if big else None,
        least_big_share=_least(big, lambda result: result.floor_share) if big else None,
    )


def _is_unsteady(result: CaseResult) -> bool:
    return any(side.ms.p80 > 2 * side.ms.p20 for side in result.sides.values())


def _least(results: Sequence[CaseResult], measure: Callable[[CaseResult], float]) -> Extreme:
    result = min(results, key=measure)
    return Extreme(value=measure(result), case=result.case.label)
