"""What the layers are to reach, and whether they did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadynorm.bench.cases import Op
from steadynorm.bench.results import CaseResult

__all__ = ["BIG_MB", "Verdict", "geometric_mean", "judge_targets"]

BIG_MB = {"cpu": 8, "cuda": 64}
"""Size of x from which memory's bandwidth decides and not the cost of starting; 10⁶ bytes."""

Results = Sequence[CaseResult]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target beside what was found."""

    op: Op
    what: str
    at_least: float
    goal: float | None
    """What would be better still."""
    found: float
    met: bool


@dataclass(frozen=True)
class _Target:
    what: str
    at_least: float
    select: Callable[[Results], list[CaseResult]]
    measure: Callable[[Results], float | None]
    goal: float | None = None


def judge_targets(results: Results, device: str) -> list[Verdict]:
    """Compare the cases of one device with its targets; a target that no case bears on is left out."""
    verdicts = []
    for op, targets in TARGETS[device].items():
        of_op = [result for result in results if result.case.op == op]
        for target in targets:
            found = target.measure(target.select(of_op))
            if found is not None:
                verdicts.append(
                    Verdict(
                        op=op,
                        what=target.what,
                        at_least=target.at_least,
                        goal=target.goal,
                        found=found,
                        met=found >= target.at_least,
                    )
                )
    return verdicts


def geometric_mean(values: Sequence[float]) -> float:
    """Give the mean of ratios: twice as fast and half as fast come to 1."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _all(results: Results) -> list[CaseResult]:
    return list(results)


def _big(results: Results) -> list[CaseResult]:
    return [result for result in results if result.case.x_bytes >= BIG_MB["cpu"] * 1e6]


def _big_bfloat16_rows(results: Results) -> list[CaseResult]:
    """Take bfloat16, channels-last, big for a GPU."""
    big = [result for result in results if result.case.x_bytes >= BIG_MB["cuda"] * 1e6]
    return [one for one in big if (one.case.dtype, one.case.layout) == ("bfloat16", "channels_last")]


def _mean_ratio(results: Results) -> float | None:
    return geometric_mean([result.ratio for result in results]) if results else None


def _least_ratio(results: Results) -> float | None:
    return min((result.ratio for result in results), default=None)


def _least_ratio_to_compile(results: Results) -> float | None:
    return min((one.ratio_to_compile for one in results if one.ratio_to_compile is not None), default=None)


def _least_share(results: Results) -> float | None:
    return min((result.floor_share for result in results), default=None)


_ON_GPU = (
    _Target("smallest ratio, bfloat16 channels_last from 64 MB", 2.0, _big_bfloat16_rows, _least_ratio),
    _Target("smallest ratio to torch.compile, of the same", 1.0, _big_bfloat16_rows, _least_ratio_to_compile),
    _Target("smallest share of the byte floor, of the same", 0.8, _big_bfloat16_rows, _least_share),
)
TARGETS: dict[str, dict[Op, tuple[_Target, ...]]] = {
    "cpu": {
        "norm": (_Target("geometric mean of the ratio", 2.2, _all, _mean_ratio),),
        "norm_relu": (
            _Target("geometric mean of the ratio", 3.5, _all, _mean_ratio, 4.5),
            _Target("smallest ratio", 1.0, _all, _least_ratio),
            _Target("smallest ratio from 8 MB", 2.5, _big, _least_ratio),
            _Target("smallest share of the byte floor from 8 MB", 0.5, _big, _least_share, 0.7),
        ),
    },
    "cuda": {"norm_relu": _ON_GPU, "norm_relu_residual": _ON_GPU},
}
