import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steadynorm.bench import kernels, timing
from steadynorm.bench.cases import Case
from steadynorm.bench.kernels import BENCHMARK, KernelsFlags, ratios
from steadynorm.bench.providers import Inputs
from steadynorm.bench.record import Json
from steadynorm.bench.timing import Provider, Sample
from steadynorm.ops import reference
from steadynorm.ops.dispatch import explain_backend
from tests.support.bench import NUMBA, SMALL_CASE, Lines, disagreeing, let_kernels_be, result, side

FLAGS = KernelsFlags(
    shapes=("cnn",), batches=(1,), max_mb=0.04, dtypes=("float32",), layouts=("contiguous",), seconds=1e-6
)
"""128x8x8 alone."""
CACHE = 2 * SMALL_CASE.x_bytes
"""Lets the inputs rotate among three sets."""
SAMPLES = [Sample(parts_ms=(1.0 * k, 3.0 * k), host_ms=0.5 * k) for k in (1, 2, 3, 4, 6)]


def measure(case: Case = SMALL_CASE, device: str = "cpu", **changes: Any) -> Json:
    return BENCHMARK.measure(case, replace(FLAGS, **changes), {"device": device, "cache_bytes": CACHE})


def test_a_row_has_all_of_the_case_and_every_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch)
    row = json.loads(json.dumps(measure()))
    case = {"case": SMALL_CASE.label, "op": "norm_relu", "network": "cnn", "shape": [1, 128, 8, 8]}
    case |= {"dtype": "float32", "layout": "contiguous", "x_bytes": 32_768}
    assert case.items() <= row.items()
    assert set(row["agreement"]) == {"agrees", "what", "error", "allowed"}
    assert row["agreement"]["agrees"]
    sides = row["sides"]
    assert list(sides) == ["copy", "torch", "ours"]
    for name, passes in {"copy": 2, "torch": 8, "ours": 8}.items():
        one = sides[name]
        assert one["samples"] == 7
        assert 0 < one["ms"]["p20"] <= one["ms"]["median"] <= one["ms"]["p80"]
        assert round(one["gb_per_s"] * one["ms"]["median"] * 1e6) == passes * SMALL_CASE.x_bytes
        assert (one["forward_ms"] is None) == (one["saved"] is None) == (one["peak_bytes"] is None) == (name == "copy")
    for name in ("torch", "ours"):
        assert sides[name]["peak_bytes"] >= 2 * SMALL_CASE.x_bytes
    kept = [sides[name]["saved"]["new_bytes"] for name in ("ours", "torch")]
    assert kept[0] < SMALL_CASE.x_bytes <= kept[1]
    assert row["ratio"] == sides["torch"]["ms"]["median"] / sides["ours"]["ms"]["median"]


def test_a_provider_has_medians_of_the_whole_and_of_its_parts() -> None:
    one = kernels._side(SAMPLES, floor_bytes=24_000_000)
    assert (one["ms"]["median"], one["forward_ms"], one["backward_ms"], one["host_ms"]) == (12.0, 3.0, 9.0, 1.5)
    assert (one["samples"], one["gb_per_s"]) == (5, 2.0)


@pytest.mark.parametrize(("op", "share"), [("norm", 0.4), ("norm_relu", 0.4), ("norm_relu_residual", 0.6)])
def test_the_share_of_the_floor_is_four_copies_or_six_over_our_time(op: Any, share: float) -> None:
    sides = {"copy": side(0.5), "torch": side(15.0), "ours": side(5.0)}
    assert ratios(op, sides) == {"ratio": 3.0, "ratio_to_compile": None, "floor_share": pytest.approx(share)}
    assert ratios(op, sides | {"compile": side(10.0)})["ratio_to_compile"] == 2.0


def test_the_backend_of_ours_is_recorded_with_its_reason() -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual")
    row, choice = measure(case), explain_backend(torch.zeros(case.shape))
    assert (row["backend"], row["reason"]) == (choice.backend, choice.reason)


def test_the_backend_depends_on_input_residual_and_whether_something_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(kernels, "explain_backend", lambda *given, fused: (seen.append((*given, fused)), NUMBA)[1])
    measure(replace(SMALL_CASE, op="norm_relu_residual", dtype="bfloat16"))
    measure(replace(SMALL_CASE, op="norm"))
    (x, residual, fused), (_, nothing, bare) = seen
    assert (x.shape, x.dtype, residual.shape) == (SMALL_CASE.shape, torch.bfloat16, SMALL_CASE.shape)
    assert (fused, nothing, bare) == (True, None, False)


def test_every_call_takes_the_inputs_that_were_touched_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []

    def cycle(sets: list[Inputs]) -> Iterator[Inputs]:
        for one in itertools.cycle(sets):
            touched.append(one.x.data_ptr())
            yield one

    monkeypatch.setattr(kernels, "itertools", SimpleNamespace(cycle=cycle))
    measure()
    assert len(set(touched)) == 3
    assert len(touched) == 3 * (timing.WARM_UP + 7) + 2  # and two for the memory
    assert all(len({*window}) == 3 for window in zip(touched, touched[1:], touched[2:], strict=False))


def test_a_case_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch, transform=lambda *arguments: reference.transform(*arguments).mul_(1.01))
    monkeypatch.setattr(kernels, "time_providers", None)
    row = measure()
    assert (row["agreement"]["agrees"], row["agreement"]["what"], row["sides"]) == (False, "y", {})
    assert "ratio" not in row


@pytest.mark.parametrize(("op", "activation"), [("norm", None), ("norm_relu", "relu"), ("norm_relu_residual", "relu")])
def test_the_reference_has_the_activation_of_the_case(
    op: Any, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    right = kernels.check_agreement
    monkeypatch.setattr(kernels, "check_agreement", lambda *given: (seen.append(given[3]), right(*given))[1])
    assert measure(replace(SMALL_CASE, op=op))["agreement"]["agrees"]
    assert seen == [activation]


@pytest.mark.parametrize("compiled", [False, True])
def test_only_torchs_twin_is_compiled_for_the_shape_at_hand(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: log.append("reset"))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: log.append(given))
    row = measure(compile=compiled)
    assert log == (["reset", {"dynamic": False}] if compiled else [])
    assert list(row["sides"]) == ["copy", "torch", *(["compile"] if compiled else []), "ours"]
    assert (row["ratio_to_compile"] is not None) is compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiled_provider_is_measured_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    right: Callable[..., Provider] = kernels.forward_backward

    def noting(module: torch.nn.Module, feed: Iterator[Inputs]) -> Provider:
        compiled.append(module._compiled_call_impl is not None)
        return right(module, feed)

    monkeypatch.setattr(kernels, "forward_backward", noting)
    assert measure(compile=True)["ratio_to_compile"] is not None
    assert compiled == [False, True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_case_is_measured_on_a_gpu(layout: Any) -> None:
    row = measure(replace(SMALL_CASE, op="norm_relu_residual", dtype="bfloat16", layout=layout), "cuda")
    assert {one["samples"] for one in row["sides"].values()} == {70}
    assert row["ratio"] > 0


def plan(flags: KernelsFlags, device: str = "cpu") -> tuple[list[Case], Json, Lines]:
    display, head = Lines(), {"device": device}
    return list(BENCHMARK.plan(flags, head, display)), head, display


def test_what_is_skipped_is_said_and_recorded_and_the_columns_are_named() -> None:
    cases, head, display = plan(FLAGS)
    reason = "x is larger than --max-mb 0.04"
    assert [case.shape for case in cases] == [(1, 128, 8, 8)]
    assert display.lines[0] == f"skipped: norm_relu 1x32x32x32 float32 contiguous: {reason}"
    assert [(one["shape"], one["reason"]) for one in head["skipped"]] == [
        ((1, 32, 32, 32), reason),
        ((1, 64, 16, 16), reason),
    ]
    assert " ".join(display.lines[2].split()) == (
        "milliseconds, forward and backward MB copy torch ours (p20-p80) ratio floor peak MB, torch ours backend"
    )


def test_by_default_a_norm_with_its_relu_is_measured_in_two_dtypes_and_layouts() -> None:
    cases, _, _ = plan(KernelsFlags())
    assert len(cases) == 168
    assert {(case.op, case.dtype, case.layout, case.network) for case in cases} == set(
        itertools.product(["norm_relu"], ["float32", "bfloat16"], ["contiguous", "channels_last"], ["cnn", "resnet50"])
    )


@pytest.mark.parametrize(("device", "largest"), [("cpu", 128e6), ("cuda", 1024e6)])
def test_inputs_are_bounded_by_default(device: str, largest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cache_bytes", lambda device: CACHE)
    cases, _, _ = plan(KernelsFlags(), device)
    assert largest / 2 < max(case.x_bytes for case in cases) <= largest


def test_a_run_measures_every_case_and_sums_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cache_bytes", lambda device: CACHE)
    display = Lines()
    record = BENCHMARK.run(FLAGS, display)
    assert display.done == [(SMALL_CASE.label, 1, 1)]
    assert (record["summary"]["whole"][0]["cases"], record["cache_bytes"]) == (1, CACHE)
    assert BENCHMARK.closing(record)[0].startswith("norm_relu: 1 cases, geometric mean ")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_line_stands_under_its_header(compiled: bool) -> None:
    _, _, display = plan(replace(FLAGS, compile=compiled))
    row = result(copy=1.5, torch=12.0, ours=6.0, compile=9.0 if compiled else None)
    head, (line,) = display.lines[-1], BENCHMARK.lines(row)
    shown = {"MB": "12.8", "copy": "1.500", "torch": "12.000", "ours": "6.000", "ratio": "2.00x"}
    for name, value in (shown | ({"compile": "9.000"} if compiled else {})).items():
        assert head.index(name) + len(name) == line.index(f" {value}") + 1 + len(value)
    assert head.index("backend") == line.index("numba")
    if not compiled:
        text = (
            "norm_relu 32x512x14x14 float32 contiguous 12.8 1.500 12.000 6.000 (5.400-7.200) 2.00x 100% 12.0 6.0 numba"
        )
        assert " ".join(line.split()) == text


def test_a_case_that_disagrees_shows_the_difference_and_no_speed() -> None:
    (line,) = BENCHMARK.lines(disagreeing())
    assert line.endswith("disagrees: dx is off by 0.25, allowed 2e-06")
    assert line.startswith("norm_relu          32x512x14x14")
