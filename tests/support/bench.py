"""Results of the bench with made-up times, and a display that remembers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from steadynorm.bench.agreement import Agreement
from steadynorm.bench.cases import Case
from steadynorm.bench.memory import Saved
from steadynorm.bench.results import CaseResult, SideResult
from steadynorm.bench.timing import Spread
from steadynorm.ops import dispatch, reference
from steadynorm.ops.dispatch import Choice

__all__ = ["NUMBA", "SMALL_CASE", "Lines", "disagreeing", "let_kernels_be", "result", "side"]

SMALL_CASE = Case(op="norm_relu", network="cnn", shape=(1, 128, 8, 8), dtype="float32", layout="contiguous")
"""Eight thousand values: too few for kernels that would have to be compiled first."""

NUMBA = Choice(backend="numba", reason="made up")


class Lines:
    """A display that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[tuple[str, int, int]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def doing(self, text: str, *, number: int, of: int) -> None:
        self.done.append((text, number, of))


def let_kernels_be(monkeypatch: pytest.MonkeyPatch, **wrong: Callable[..., Any]) -> None:
    """Let our layer run the reference's kernels at any size, with some of them replaced; the reference stays right."""
    right = {name: getattr(reference, name) for name in ("moments", "transform", "transform_sums", "transform_grad")}
    monkeypatch.setattr(dispatch, "_wanted", "reference")
    monkeypatch.setattr(dispatch, "_module", lambda name: SimpleNamespace(**right | wrong))


def side(ms: float) -> SideResult:
    """A side that takes so long, of which the forward is a quarter."""
    return SideResult(
        ms=Spread(median=ms, p20=0.9 * ms, p80=1.2 * ms),
        forward_ms=ms / 4,
        backward_ms=3 * ms / 4,
        host_ms=ms,
        samples=7,
        gb_per_s=1.0,
        peak_bytes=int(ms * 1e6),
        saved=Saved(new_bytes=3, given_bytes=5),
    )


def result(
    *,
    copy: float = 1.0,
    torch: float = 12.0,
    ours: float = 6.0,
    compile: float | None = None,
    **changes: Any,
) -> CaseResult:
    """A case of 12.8 MB; ``changes`` are changes of the case."""
    case = {"op": "norm_relu", "network": "resnet50", "shape": (32, 512, 14, 14)}
    case |= {"dtype": "float32", "layout": "contiguous"} | changes
    sides = {"copy": side(copy), "torch": side(torch), "ours": side(ours)}
    return CaseResult(
        case=Case(**case),  # type: ignore[arg-type]
        backend=NUMBA,
        agreement=Agreement(what="dx", error=1e-6, allowed=2e-6),
        sides=sides if compile is None else sides | {"compile": side(compile)},
    )


def disagreeing(**changes: Any) -> CaseResult:
    """A case whose dx is wrong."""
    case = result(**changes).case
    return CaseResult(case=case, backend=NUMBA, agreement=Agreement(what="dx", error=0.25, allowed=2e-6), sides={})
