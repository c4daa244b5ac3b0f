import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steadynorm.bench import kernels
from steadynorm.bench.cases import Case
from steadynorm.bench.kernels import KernelsConfig, measure_case, run
from steadynorm.bench.record import read_record
from steadynorm.bench.results import CaseResult
from steadynorm.lab import machine
from steadynorm.ops import reference
from steadynorm.ops.dispatch import explain_backend
from steadynorm.reporting.failure import UserError
from tests.support.bench import NUMBA, SMALL_CASE, Lines, let_kernels_be, result

CPU = torch.device("cpu")
TINY = KernelsConfig(
    shapes=("cnn",), batches=(1,), max_mb=0.04, dtypes=("float32",), layouts=("contiguous",), seconds=1e-6
)
"""128x8x8 alone."""


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the inputs rotate among three sets."""
    monkeypatch.setattr(kernels, "cache_bytes", lambda device: 2 * SMALL_CASE.x_bytes)


def test_a_case_is_measured_on_every_side() -> None:
    found = measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6)
    assert list(found.sides) == ["copy", "torch", "ours"]
    assert {side.samples for side in found.sides.values()} == {7}
    assert all(side.ms.p20 <= side.ms.median <= side.ms.p80 for side in found.sides.values())
    assert all(side.ms.p20 > 0 for side in found.sides.values())
    assert found.agreement.agrees


def test_forward_and_backward_are_measured_apart_too() -> None:
    found = measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6).sides
    for name in ("torch", "ours"):
        forward, backward = found[name].forward_ms, found[name].backward_ms
        assert forward is not None
        assert backward is not None
        assert 0 < forward < found[name].ms.p80 * 2
    assert found["copy"].forward_ms is None


def test_bandwidth_is_reckoned_by_the_floor_of_each_side() -> None:
    found = measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6).sides
    moved = {name: round(side.gb_per_s * side.ms.median * 1e6) for name, side in found.items()}
    assert moved == {name: passes * SMALL_CASE.x_bytes for name, passes in (("copy", 2), ("torch", 8), ("ours", 8))}


def test_memory_is_measured_for_both_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch)
    found = measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6).sides
    for name in ("torch", "ours"):
        assert (found[name].peak_bytes or 0) >= 2 * SMALL_CASE.x_bytes
    native, ours = found["torch"].saved, found["ours"].saved
    assert native is not None
    assert ours is not None
    assert ours.new_bytes < SMALL_CASE.x_bytes <= native.new_bytes


def test_the_backend_of_ours_is_recorded_with_its_reason() -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual")
    assert measure_case(case, CPU, compiled=False, seconds=1e-6).backend == explain_backend(torch.zeros(case.shape))


def test_the_backend_depends_on_input_residual_and_whether_something_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(kernels, "explain_backend", lambda *given, fused: (seen.append((*given, fused)), NUMBA)[1])
    measure_case(replace(SMALL_CASE, op="norm_relu_residual", dtype="bfloat16"), CPU, compiled=False, seconds=1e-6)
    measure_case(replace(SMALL_CASE, op="norm"), CPU, compiled=False, seconds=1e-6)
    (x, residual, fused), (_, nothing, bare) = seen
    assert (x.shape, x.dtype, residual.shape) == (SMALL_CASE.shape, torch.bfloat16, SMALL_CASE.shape)
    assert (fused, nothing, bare) == (True, None, False)


def test_every_call_takes_the_inputs_that_were_touched_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []

    def note(function: Callable[..., Any], position: int) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            touched.append(arguments[position].x.data_ptr())
            return function(*arguments)

        return noting

    monkeypatch.setattr(kernels, "copy_input", note(kernels.copy_input, 0))
    monkeypatch.setattr(kernels, "forward_backward", note(kernels.forward_backward, 1))
    measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6)
    assert len(set(touched)) == 3
    assert all(len({*window}) == 3 for window in zip(touched, touched[1:], touched[2:], strict=False))


def test_sides_are_warmed_up_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    right, interleave = kernels.forward_backward, kernels.interleave
    monkeypatch.setattr(kernels, "forward_backward", lambda *given: (order.append("step"), right(*given)))
    monkeypatch.setattr(kernels, "interleave", lambda *a, **b: (order.append("timed"), interleave(*a, **b))[1])
    measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6)
    assert order[:7] == ["step"] * 6 + ["timed"]


def test_a_case_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch, transform=lambda *arguments: reference.transform(*arguments).mul_(1.01))
    monkeypatch.setattr(kernels, "interleave", None)
    found = measure_case(SMALL_CASE, CPU, compiled=False, seconds=1e-6)
    assert (found.agreement.agrees, found.agreement.what, found.sides) == (False, "y", {})


@pytest.mark.parametrize(("op", "activation"), [("norm", None), ("norm_relu", "relu"), ("norm_relu_residual", "relu")])
def test_the_reference_has_the_activation_of_the_case(
    op: Any, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    right = kernels.check_agreement
    monkeypatch.setattr(kernels, "check_agreement", lambda *given: (seen.append(given[3]), right(*given))[1])
    assert measure_case(replace(SMALL_CASE, op=op), CPU, compiled=False, seconds=1e-6).agreement.agrees
    assert seen == [activation]


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_code_is_forgotten_before_each_case(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[None] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    build = kernels.build_modules
    monkeypatch.setattr(kernels, "build_modules", lambda *given, compiled: build(*given, compiled=False))
    measure_case(SMALL_CASE, CPU, compiled=compiled, seconds=1e-6)
    assert len(resets) == compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiled_side_is_measured_where_it_is_asked_for() -> None:
    found = measure_case(SMALL_CASE, CPU, compiled=True, seconds=1e-6)
    assert list(found.sides) == ["copy", "torch", "compile", "ours"]
    assert found.ratio_to_compile is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_case_is_measured_on_a_gpu(layout: Any) -> None:
    case = replace(SMALL_CASE, op="norm_relu_residual", dtype="bfloat16", layout=layout)
    found = measure_case(case, torch.device("cuda"), compiled=False, seconds=1e-6)
    assert {side.samples for side in found.sides.values()} == {70}
    assert found.ratio > 0


def fake_measurements(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> list[Case]:
    """Let every case take no time, and perhaps be interrupted."""
    measured: list[Case] = []

    def fake(case: Case, device: torch.device, *, compiled: bool, seconds: float) -> CaseResult:
        if len(measured) == stop_at:
            raise KeyboardInterrupt
        measured.append(case)
        return replace(result(), case=case)

    monkeypatch.setattr(kernels, "measure_case", fake)
    return measured


def test_the_record_holds_every_case_and_what_they_come_to() -> None:
    record = run(TINY, Lines())
    assert record["complete"] is True
    (case,) = record["cases"]
    assert (case["shape"], set(case["sides"])) == ((1, 128, 8, 8), {"copy", "torch", "ours"})
    assert record["summary"]["whole"][0]["cases"] == 1
    assert record["cache_bytes"] == 2 * SMALL_CASE.x_bytes
    assert json.loads(json.dumps(record))["bench"] == "kernels"


def test_what_is_skipped_is_said_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_measurements(monkeypatch)
    display = Lines()
    record = run(TINY, display)
    assert display.lines[0] == "skipped: norm_relu 1x32x32x32 float32 contiguous: x is larger than --max-mb 0.04"
    assert [one["shape"] for one in record["skipped"]] == [(1, 32, 32, 32), (1, 64, 16, 16)]
    assert record["skipped"][0]["reason"] == "x is larger than --max-mb 0.04"


def test_each_case_is_a_line_under_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = fake_measurements(monkeypatch)
    display = Lines()
    run(KernelsConfig(shapes=("cnn",), batches=(1, 8)), display)
    assert display.lines[0].startswith("milliseconds")
    assert [line.split()[1] for line in display.lines[1:]] == ["x".join(map(str, case.shape)) for case in cases]
    assert display.done == [(case.label, number, 24) for number, case in enumerate(cases, start=1)]


def test_by_default_a_norm_with_its_relu_is_measured_in_two_dtypes_and_layouts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = fake_measurements(monkeypatch)
    run(KernelsConfig(device="cpu"), Lines())
    assert len(cases) == 168
    assert {(case.op, case.dtype, case.layout, case.network) for case in cases} == set(
        itertools.product(["norm_relu"], ["float32", "bfloat16"], ["contiguous", "channels_last"], ["cnn", "resnet50"])
    )


@pytest.mark.parametrize(("device", "largest"), [("cpu", 128e6), ("cuda", 1024e6)])
def test_inputs_are_bounded_by_default(device: str, largest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = fake_measurements(monkeypatch)
    monkeypatch.setattr(kernels, "choose_device", lambda wanted: torch.device(device))
    monkeypatch.setattr(kernels, "begin_record", lambda *_: {"device": device})
    run(KernelsConfig(), Lines())
    assert largest / 2 < max(case.x_bytes for case in cases) <= largest


def test_the_flags_reach_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(kernels, "measure_case", lambda *_, **given: (seen.append(given), result())[1])
    run(replace(TINY, compile=True, seconds=3.0), Lines())
    assert seen == [{"compiled": True, "seconds": 3.0}]


def test_the_number_of_threads_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_measurements(monkeypatch)
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "count_cores", lambda: before + 1)
    try:
        assert run(replace(TINY, threads=before + 1), Lines())["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_interrupted_run_writes_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_measurements(monkeypatch, stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, batches=(1, 2, 3), max_mb=None, out=tmp_path), Lines())
    (path,) = tmp_path.iterdir()
    record = read_record(path)
    assert (record["complete"], len(record["cases"])) == (False, 2)


def test_a_run_that_is_interrupted_at_once_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_measurements(monkeypatch, stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, out=tmp_path), Lines())
    assert list(tmp_path.iterdir()) == []


def test_what_measures_nothing_is_refused_first() -> None:
    with pytest.raises(UserError, match="--op"):
        run(replace(TINY, op=()), Lines())


def test_records_of_two_runs_lie_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_measurements(monkeypatch)
    for _ in itertools.repeat(None, 2):
        run(replace(TINY, out=tmp_path), Lines())
    assert len(list(tmp_path.glob("bench_kernels_cpu_*.json"))) == 2
