"""Rows of a benchmark with made-up times, and a display that remembers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from steadynorm.bench.cases import Case
from steadynorm.bench.kernels import ratios
from steadynorm.bench.record import Json
from steadynorm.bench.timing import Clock, Provider, Sample
from steadynorm.ops import dispatch, reference, registration
from steadynorm.ops.dispatch import Choice
from steadynorm.reporting import progress

__all__ = ["NUMBA", "SMALL_CASE", "Lines", "disagreeing", "let_kernels_be", "result", "side", "times_as"]

SMALL_CASE = Case(op="norm_relu", network="cnn", shape=(1, 128, 8, 8), dtype="float32", layout="contiguous")
"""Eight thousand values: too few for kernels that would have to be compiled first."""

NUMBA = Choice(backend="numba", reason="made up")


class Lines(progress._Silent):
    """A display that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[tuple[str, int, int]] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def begin(
        self, name: str, *, number: int, of: int, left: int | None = None, share: float = 0.0, text: str = ""
    ) -> None:
        self.done.append((name, number, of))


def let_kernels_be(monkeypatch: pytest.MonkeyPatch, **wrong: Callable[..., Any]) -> None:
    """Let our layer run the reference's kernels at any size, with some of them replaced; the reference stays right."""
    right = {name: getattr(reference, name) for name in ("moments", "transform", "transform_sums", "transform_grad")}
    monkeypatch.setattr(dispatch, "_wanted", "reference")
    for module in (dispatch, registration):
        monkeypatch.setattr(module, "implementation", lambda name: SimpleNamespace(**right | wrong))


def times_as(monkeypatch: pytest.MonkeyPatch, module: Any, ms: Mapping[str, float]) -> None:
    """Let every provider take the milliseconds given for it in what a benchmark's module measures."""

    def time_providers(providers: Mapping[str, Provider], clock: Clock, *, seconds: float) -> dict[str, list[Sample]]:
        return {name: [Sample(parts_ms=(ms[name],), host_ms=0.0)] * 3 for name in providers}

    monkeypatch.setattr(module, "time_providers", time_providers)


def side(ms: float, *, p20: float = 0.9, p80: float = 1.2) -> Json:
    """A provider that takes so long, of which the forward is a quarter; percentiles are in medians."""
    return {
        "ms": {"median": ms, "p20": p20 * ms, "p80": p80 * ms},
        "forward_ms": ms / 4,
        "backward_ms": 3 * ms / 4,
        "host_ms": ms,
        "samples": 7,
        "gb_per_s": 1.0,
        "peak_bytes": int(ms * 1e6),
        "saved": {"new_bytes": 3, "given_bytes": 5},
    }


def result(
    *,
    copy: float = 1.0,
    torch: float = 12.0,
    ours: float = 6.0,
    compile: float | None = None,
    **changes: Any,
) -> Json:
    """A row of kernels, of 12.8 MB; ``changes`` are changes of the case."""
    fields = {"op": "norm_relu", "network": "resnet50", "shape": (32, 512, 14, 14)}
    case = Case(**(fields | {"dtype": "float32", "layout": "contiguous"} | changes))  # type: ignore[arg-type]
    sides = {"copy": side(copy), "torch": side(torch), "ours": side(ours)}
    sides |= {} if compile is None else {"compile": side(compile)}
    return (
        {"case": case.label}
        | dataclasses.asdict(case)
        | {"x_bytes": case.x_bytes, "agreement": {"agrees": True, "what": "dx", "error": 1e-6, "allowed": 2e-6}}
        | {"backend": "numba", "reason": "made up", "sides": sides}
        | ratios(case.op, sides)
    )


def disagreeing(**changes: Any) -> Json:
    """A row of kernels whose dx is wrong."""
    row = {
        key: value
        for key, value in result(**changes).items()
        if key not in ("ratio", "ratio_to_compile", "floor_share")
    }
    return row | {"agreement": {"agrees": False, "what": "dx", "error": 0.25, "allowed": 2e-6}, "sides": {}}
