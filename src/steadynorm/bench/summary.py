"""Summary of all cases of ``kernels``, and whether the targets are reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadynorm.bench.cases import BIG_MB
from steadynorm.bench.record import Json

__all__ = ["geometric_mean", "judge", "summarize", "summary_lines"]

Rows = Sequence[Json]


def summarize(rows: Rows, device: str) -> Json:
    """Summarize the rows of one device; cases that disagree are named and excluded."""
    timed = [row for row in rows if row["sides"]]
    ops = dict.fromkeys(row["op"] for row in timed)
    kinds = dict.fromkeys((row["op"], row["dtype"], row["layout"]) for row in timed)
    return {
        "disagreeing": [row["case"] for row in rows if not row["sides"]],
        "unsteady": [row["case"] for row in rows if _is_unsteady(row)],
        "whole": [_group(timed, device, op, None, None) for op in ops],
        "parts": [_group(timed, device, *kind) for kind in kinds],
        "verdicts": judge(timed, device),
    }


def judge(rows: Rows, device: str) -> list[Json]:
    """Compare the rows of one device with its targets; a target without a case is left out."""
    verdicts = []
    for target in TARGETS[device]:
        of_op = [row for row in rows if row["op"] == target.op and target.select(row)]
        values = [row[target.key] for row in of_op if row[target.key] is not None]
        if values:
            found = target.take(values)
            said = {name: getattr(target, name) for name in ("op", "what", "at_least", "goal")}
            verdicts.append(said | {"found": found, "met": found >= target.at_least})
    return verdicts


def geometric_mean(values: Sequence[float]) -> float:
    """Return the mean of ratios: twice as fast and half as fast come to 1."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def summary_lines(summary: Json, *, cases: int) -> list[str]:
    """Describe all cases in a few lines."""
    lines = []
    for part in summary["whole"]:
        text = f"{part['op']}: {part['cases']} cases, geometric mean {part['ratio']:.2f}x torch"
        if part["ratio_to_compile"] is not None:
            text += f" and {part['ratio_to_compile']:.2f}x torch.compile"
        lines.append(f"{text}, least {_at(part['least_ratio'], '.2f', 'x')}")
        if part["big_cases"]:
            ratio, share = _at(part["least_big_ratio"], ".2f", "x"), _at(part["least_big_share"], ".0%", "")
            lines.append(f"  from {part['big_mb']} MB ({part['big_cases']} cases): least {ratio}")
            lines.append(f"  least share of the byte floor there: {share}")
    for one in summary["verdicts"]:
        goal = "" if one["goal"] is None else f" (goal {one['goal']:g})"
        state = "met" if one["met"] else "not met"
        found = f"{one['op']}: {one['what']} {one['found']:.2f}, at least {one['at_least']:g}{goal}"
        lines.append(f"target {state:7}  {found}")
    if summary["unsteady"]:
        count = len(summary["unsteady"])
        lines.append(f"unsteady, p80 over twice p20, in {count} of {cases} cases: measure again on a quiet machine")
    return lines + [f"disagrees with the reference, no speed: {label}" for label in summary["disagreeing"]]


def _group(rows: Rows, device: str, op: str, dtype: str | None, layout: str | None) -> Json:
    """Describe some of the cases; without dtype and layout, all of an operation together."""
    wanted = [
        row for row in rows if row["op"] == op and dtype in (None, row["dtype"]) and layout in (None, row["layout"])
    ]
    big = [row for row in wanted if _is_big(row, device)]
    to_compile = [row["ratio_to_compile"] for row in wanted if row["ratio_to_compile"] is not None]
    return {
        "op": op,
        "dtype": dtype,
        "layout": layout,
        "cases": len(wanted),
        "ratio": geometric_mean([row["ratio"] for row in wanted]),
        "ratio_to_compile": geometric_mean(to_compile) if to_compile else None,
        "least_ratio": _least(wanted, "ratio"),
        "big_mb": BIG_MB[device],
        "big_cases": len(big),
        "least_big_ratio": _least(big, "ratio"),
        "least_big_share": _least(big, "floor_share"),
    }


def _is_unsteady(row: Json) -> bool:
    """Warn if a provider's 80th percentile is over twice its 20th: the machine was busy."""
    return any(side["ms"]["p80"] > 2 * side["ms"]["p20"] for side in row["sides"].values())


def _is_big(row: Json, device: str) -> bool:
    return bool(row["x_bytes"] >= BIG_MB[device] * 1e6)


def _least(rows: Rows, key: str) -> Json | None:
    """Return the smallest value, and its case."""
    row = min(rows, key=lambda row: float(row[key]), default=None)
    return row and {"value": row[key], "case": row["case"]}


def _at(least: Json, form: str, unit: str) -> str:
    return f"{least['value']:{form}}{unit} at {least['case']}"


@dataclass(frozen=True)
class _Target:
    op: str
    what: str
    at_least: float
    key: str
    """Key of the values in the rows."""
    take: Callable[[Sequence[float]], float]
    """Reduction of the values."""
    select: Callable[[Json], bool] = lambda row: True
    goal: float | None = None
    """What would be better still."""


def _big(row: Json) -> bool:
    return _is_big(row, "cpu")


def _big_bfloat16(row: Json) -> bool:
    """Select bfloat16, channels-last, big for a GPU."""
    return _is_big(row, "cuda") and (row["dtype"], row["layout"]) == ("bfloat16", "channels_last")


TARGETS = {
    "cpu": [
        _Target("norm", "geometric mean of the ratio", 2.2, "ratio", geometric_mean),
        _Target("norm_relu", "geometric mean of the ratio", 3.5, "ratio", geometric_mean, goal=4.5),
        _Target("norm_relu", "smallest ratio", 1.0, "ratio", min),
        _Target("norm_relu", "smallest ratio from 8 MB", 2.5, "ratio", min, _big),
        _Target("norm_relu", "smallest share of the byte floor from 8 MB", 0.5, "floor_share", min, _big, 0.7),
    ],
    "cuda": [
        _Target(op, f"smallest {what}", at_least, key, min, _big_bfloat16)
        for op in ("norm_relu", "norm_relu_residual")
        for what, at_least, key in (
            ("ratio, bfloat16 channels_last from 64 MB", 2.0, "ratio"),
            ("ratio to torch.compile, of the same", 1.0, "ratio_to_compile"),
            ("share of the byte floor, of the same", 0.8, "floor_share"),
        )
    ],
}
