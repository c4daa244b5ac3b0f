import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steadynorm import cli
from steadynorm.bench import commands, layers
from steadynorm.bench.agreement import difference_to_float64
from steadynorm.bench.benchmark import Benchmark
from steadynorm.bench.cases import Case
from steadynorm.bench.commands import table_of
from steadynorm.bench.layers import BENCHMARK, BUILD, LIMITS, LayersFlags
from steadynorm.bench.providers import make_inputs, prepared
from steadynorm.bench.record import Json
from steadynorm.layers import BatchNorm2d
from tests.support.bench import SMALL_CASE, Lines, let_kernels_be, times_as

CPU = torch.device("cpu")
TINY = LayersFlags(
    shapes=("cnn",),
    batches=(1,),
    dtypes=("float32",),
    layouts=("contiguous",),
    min_mb=0.04,
    max_mb=0.1,
    seconds=1e-6,
)
"""One of the cnn's three inputs: 64 channels of 16x16."""
LABEL = "norm_relu 1x64x16x16 float32 contiguous"


def results_as(**over_plain: float) -> Benchmark[LayersFlags, Case]:
    """Let every case have these ratios; NaN for a layer that disagrees."""

    def measure(case: Case, *_: Any) -> Json:
        found = {
            name: {
                "difference": 0.5 if ratio != ratio else 1e-7,
                "agrees": ratio == ratio,
                "ms": {"median": 2.0 * ratio, "p20": 1.0, "p80": 3.0} if ratio == ratio else None,
                "over_plain": ratio if ratio == ratio else None,
            }
            for name, ratio in {"batch_norm": 1.0, **over_plain}.items()
        }
        return {"case": case.label, "x_bytes": case.x_bytes, "layers": found}

    return replace(BENCHMARK, measure=measure)


def measure(names: Sequence[Any]) -> Json:
    row = BENCHMARK.measure(SMALL_CASE, replace(TINY, layers=tuple(names)), {"device": "cpu", "cache_bytes": 1})
    assert (row["case"], row["x_bytes"]) == (SMALL_CASE.label, SMALL_CASE.x_bytes)
    found: Json = row["layers"]
    return found


@pytest.fixture
def reference_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch)


@pytest.mark.usefixtures("reference_kernels")
def test_every_layer_is_timed_beside_plain_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    ms = dict(zip(BUILD, (2.0, 3.0, 4.0, 5.0, 1.0), strict=True))
    times_as(monkeypatch, layers, ms)
    found = measure(tuple(LIMITS))
    assert all(one["agrees"] for one in found.values())
    assert {name: one["over_plain"] for name, one in found.items()} == {name: each / 2 for name, each in ms.items()}


@pytest.mark.usefixtures("reference_kernels")
def test_the_times_are_of_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    right = layers.total_ms
    monkeypatch.setattr(
        layers, "total_ms", lambda samples: (seen.extend(map(len, samples.values())), right(samples))[1]
    )
    assert all(one["ms"]["median"] > 0 for one in measure(("batch_renorm",)).values())
    assert seen == [7, 7]


@pytest.mark.usefixtures("reference_kernels")
def test_a_layer_that_disagrees_with_itself_in_float64_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(BatchNorm2d):
        def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            y = super().forward(input)
            return y if input.dtype == torch.float64 else y * 1.001

    times_as(monkeypatch, layers, {"batch_norm": 1.0})
    monkeypatch.setitem(BUILD, "batch_renorm", lambda channels: Wrong(channels, activation="relu"))
    found = measure(("batch_renorm",))["batch_renorm"]
    assert (found["agrees"], found["ms"], found["over_plain"]) == (False, None, None)


@pytest.mark.usefixtures("reference_kernels")
def test_beside_a_plain_batch_norm_that_disagrees_nothing_has_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.difference_to_float64
    monkeypatch.setattr(
        layers, "difference_to_float64", lambda module, x: 1.0 if type(module) is BatchNorm2d else right(module, x)
    )
    found = measure(("batch_renorm",))
    assert [(one["agrees"], one["over_plain"]) for one in found.values()] == [(False, None), (True, None)]


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.usefixtures("reference_kernels")
def test_in_float32_the_difference_is_rounding(name: str) -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    module = prepared(BUILD[name](128), CPU, estimates=True)
    assert difference_to_float64(module, inputs) < 1e-5


def test_what_is_outside_the_bounds_is_named() -> None:
    record = results_as(batch_renorm=1.0).run(replace(TINY, layers=("batch_renorm",)), Lines())
    assert [one["case"] for one in record["cases"]] == [LABEL]
    assert record["skipped"] == [
        "norm_relu 1x32x32x32 float32 contiguous: x is larger than --max-mb 0.1",
        "norm_relu 1x128x8x8 float32 contiguous: x is smaller than --min-mb 0.04",
    ]


def test_a_summary_has_the_median_the_most_and_where() -> None:
    shown = Lines()
    record = results_as(batch_renorm=1.25, frozen_batch_norm=0.5).run(
        replace(TINY, layers=("batch_renorm", "frozen_batch_norm")), shown
    )
    assert record["summary"]["batch_renorm"] == {
        "cases": 1,
        "median": 1.25,
        "most": 1.25,
        "most_at": LABEL,
        "limit": 1.15,
        "met": None,  # the case is smaller than what the limit is for
    }
    assert "2.000 ms (1.000-3.000)  batch_renorm 1.25  frozen_batch_norm 0.50" in shown.lines[-1]


def test_the_median_of_two_cases_lies_between_them() -> None:
    rows = [{"layers": {"a": {"over_plain": ratio}}, "x_bytes": 1, "case": ratio} for ratio in (1.0, 2.0)]
    assert layers._summary("a", rows, "cuda")["median"] == 1.5


@pytest.mark.parametrize(("ratio", "met"), [(1.15, True), (1.16, False)])
def test_from_eight_megabytes_on_limits_are_held(ratio: float, met: bool) -> None:
    config = replace(TINY, layers=("gated_batch_norm",), batches=(128,), min_mb=8.0, max_mb=64.0)
    record = results_as(gated_batch_norm=ratio).run(config, Lines())
    assert record["summary"]["gated_batch_norm"]["met"] is met
    assert BENCHMARK.closing(record)[0].endswith(f"limit 1.15 {'met' if met else 'not met'}")


def test_what_disagrees_is_exit_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(commands, "BENCHMARKS", [results_as(batch_renorm=float("nan"))])
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "layers", "--layers", "batch_renorm", "--shapes", "cnn", "--dtypes", "float32"])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "batch_renorm disagrees: off by 0.5" in printed
    assert "disagrees with float64, no speed: batch_renorm on norm_relu 128x32x32x32 float32 contiguous" in printed


def test_the_record_is_kept_and_becomes_a_table(tmp_path: Path) -> None:
    results_as(ghost_batch_norm=1.125).run(replace(TINY, layers=("ghost_batch_norm",), out=tmp_path), Lines())
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("bench_layers_cpu_")
    rows = table_of(json.loads(path.read_text())).splitlines()
    assert rows[0].startswith("Norm and ReLU, forward and backward, inputs from 0.04 to 0.1 MB; ")
    assert rows[-1] == f"| ghost_batch_norm | 1 | 1.12 | 1.12 | {LABEL} |"
