from typing import Any

import pytest

from steadynorm.bench.results import CaseResult
from steadynorm.bench.targets import Verdict, geometric_mean, judge_targets
from tests.support.bench import result

SMALL, BIG = (1, 512, 14, 14), (32, 512, 14, 14)  # 0.4 and 12.8 MB
GPU: dict[str, Any] = {"shape": (256, 64, 56, 56), "dtype": "bfloat16", "layout": "channels_last"}  # 103 MB


def found(results: list[CaseResult], device: str = "cpu") -> dict[str, float]:
    return {f"{one.op}: {one.what}": pytest.approx(one.found) for one in judge_targets(results, device)}


def test_a_geometric_mean_multiplies() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 8.0, 1.0]) == pytest.approx(2.0)


def test_the_targets_on_a_cpu_are_measured_on_the_cases_they_are_about() -> None:
    results = [
        result(shape=SMALL, torch=2.0, ours=1.0, copy=0.01),
        result(shape=BIG, torch=8.0, ours=1.0, copy=0.2),
        result(shape=BIG, torch=4.0, ours=1.0, copy=0.15),
        result(op="norm", torch=3.0, ours=1.0),
        result(op="norm", torch=12.0, ours=1.0),
    ]
    assert found(results) == {
        "norm: geometric mean of the ratio": 6.0,
        "norm_relu: geometric mean of the ratio": 4.0,
        "norm_relu: smallest ratio": 2.0,
        "norm_relu: smallest ratio from 8 MB": 4.0,
        "norm_relu: smallest share of the byte floor from 8 MB": 0.6,
    }


def test_eight_megabytes_are_big() -> None:
    assert "norm_relu: smallest ratio from 8 MB" in found([result(shape=(1, 2_000_000, 1, 1))])
    assert "norm_relu: smallest ratio from 8 MB" not in found([result(shape=(1, 1_999_999, 1, 1))])


def test_sixty_four_megabytes_are_big_on_a_gpu() -> None:
    what = "norm_relu: smallest ratio, bfloat16 channels_last from 64 MB"
    assert what in found([result(**(GPU | {"shape": (1, 32_000_000, 1, 1)}))], "cuda")
    assert what not in found([result(**(GPU | {"shape": (1, 31_999_999, 1, 1)}))], "cuda")


def test_the_targets_on_a_cpu_are_these() -> None:
    verdicts = judge_targets([result(), result(op="norm"), result(op="norm_relu_residual")], "cpu")
    assert [(one.op, one.at_least, one.goal) for one in verdicts] == [
        ("norm", 2.2, None),
        ("norm_relu", 3.5, 4.5),
        ("norm_relu", 1.0, None),
        ("norm_relu", 2.5, None),
        ("norm_relu", 0.5, 0.7),
    ]


def test_the_targets_on_a_gpu_are_measured_on_big_bfloat16_rows() -> None:
    results = [
        result(**GPU, torch=6.0, ours=2.0, compile=3.0, copy=0.45),
        result(**GPU, torch=5.0, ours=2.0, compile=4.0, copy=0.4),
        result(**(GPU | {"dtype": "float32"}), torch=1.0, ours=2.0),
        result(**(GPU | {"layout": "contiguous"}), torch=1.0, ours=2.0),
        result(**(GPU | {"shape": BIG}), torch=1.0, ours=2.0),
    ]
    assert found(results, "cuda") == {
        "norm_relu: smallest ratio, bfloat16 channels_last from 64 MB": 2.5,
        "norm_relu: smallest ratio to torch.compile, of the same": 1.5,
        "norm_relu: smallest share of the byte floor, of the same": 0.8,
    }


def test_the_targets_on_a_gpu_are_these() -> None:
    verdicts = judge_targets([result(**GPU, op="norm_relu_residual", compile=1.0), result(**GPU, op="norm")], "cuda")
    assert [(one.op, one.at_least) for one in verdicts] == [
        ("norm_relu_residual", 2.0),
        ("norm_relu_residual", 1.0),
        ("norm_relu_residual", 0.8),
    ]


def test_a_target_that_no_case_bears_on_is_left_out() -> None:
    assert found([]) == {}
    assert "norm_relu: smallest ratio to torch.compile, of the same" not in found([result(**GPU)], "cuda")


@pytest.mark.parametrize(("ours", "met"), [(12 / 2.2, True), (12 / 2.19, False)])
def test_a_target_is_met_by_what_is_at_least_as_much(ours: float, met: bool) -> None:
    (verdict,) = judge_targets([result(op="norm", torch=12.0, ours=ours)], "cpu")
    assert verdict == Verdict(
        op="norm",
        what="geometric mean of the ratio",
        at_least=2.2,
        goal=None,
        found=pytest.approx(12 / ours),  # type: ignore[arg-type]
        met=met,
    )
