from typing import Any

import pytest

from steadynorm.bench.record import Json
from steadynorm.bench.summary import geometric_mean, judge, summarize, summary_lines
from tests.support.bench import disagreeing, result, side

SMALL, BIG = (1, 512, 14, 14), (32, 512, 14, 14)  # 0.4 and 12.8 MB
GPU: dict[str, Any] = {"shape": (256, 64, 56, 56), "dtype": "bfloat16", "layout": "channels_last"}  # 103 MB
RESULTS = [
    result(shape=SMALL, torch=2.0, ours=1.0, copy=0.01),
    result(torch=4.0, ours=1.0, copy=0.2),
    result(torch=8.0, ours=1.0, copy=0.15, layout="channels_last"),
    result(torch=5.0, ours=1.0, op="norm", dtype="bfloat16"),
]


def found(rows: list[Json], device: str = "cpu") -> dict[str, float]:
    return {f"{one['op']}: {one['what']}": pytest.approx(one["found"]) for one in judge(rows, device)}


def test_each_operation_is_summarized_over_all_its_cases() -> None:
    relu, bare = summarize(RESULTS, "cpu")["whole"]
    assert relu == {
        "op": "norm_relu",
        "dtype": None,
        "layout": None,
        "cases": 3,
        "ratio": pytest.approx(4.0),
        "ratio_to_compile": None,
        "least_ratio": {"value": 2.0, "case": RESULTS[0]["case"]},
        "big_mb": 8,
        "big_cases": 2,
        "least_big_ratio": {"value": 4.0, "case": RESULTS[1]["case"]},
        "least_big_share": {"value": 0.6, "case": RESULTS[2]["case"]},
    }
    assert (bare["op"], bare["cases"], bare["ratio"]) == ("norm", 1, pytest.approx(5.0))


def test_each_dtype_and_layout_of_an_operation_is_summarized_too() -> None:
    parts = summarize(RESULTS, "cpu")["parts"]
    assert [(part["op"], part["dtype"], part["layout"], part["cases"]) for part in parts] == [
        ("norm_relu", "float32", "contiguous", 2),
        ("norm_relu", "float32", "channels_last", 1),
        ("norm", "bfloat16", "contiguous", 1),
    ]
    assert parts[0]["ratio"] == pytest.approx(8**0.5)


def test_without_a_big_case_nothing_is_said_about_big_cases() -> None:
    (relu,) = summarize(RESULTS[:1], "cpu")["whole"]
    assert (relu["big_cases"], relu["least_big_ratio"], relu["least_big_share"]) == (0, None, None)


@pytest.mark.parametrize(
    ("device", "channels", "kind"),
    [("cpu", 2_000_000, {}), ("cuda", 32_000_000, {"dtype": "bfloat16", "layout": "channels_last"})],
)
def test_eight_megabytes_are_big_and_sixty_four_on_a_gpu(device: str, channels: int, kind: dict[str, Any]) -> None:
    rows = [result(shape=(1, count, 1, 1), **kind) for count in (channels, channels - 1)]
    (relu,) = summarize(rows, device)["whole"]
    assert (relu["big_mb"], relu["big_cases"]) == ({"cpu": 8, "cuda": 64}[device], 1)
    assert any("64 MB" in what or "8 MB" in what for what in found(rows[:1], device))
    assert not any("64 MB" in what or "8 MB" in what for what in found(rows[1:], device))


def test_ratios_to_compile_are_averaged_where_they_are() -> None:
    (relu,) = summarize([result(compile=12.0), result(compile=3.0), result()], "cpu")["whole"]
    assert relu["ratio_to_compile"] == pytest.approx(1.0)


def test_a_case_that_disagrees_is_named_and_counts_nowhere() -> None:
    wrong = disagreeing(dtype="bfloat16")
    assert summarize([*RESULTS, wrong], "cpu") == summarize(RESULTS, "cpu") | {"disagreeing": [wrong["case"]]}


@pytest.mark.parametrize("name", ["copy", "torch", "ours"])
def test_a_case_is_unsteady_where_a_providers_percentiles_lie_far_apart(name: str) -> None:
    calm, wild = result(), result(op="norm")
    calm["sides"][name] = side(1.5, p20=2 / 3, p80=4 / 3)
    wild["sides"][name] = side(1.5, p20=2 / 3, p80=1.4)
    assert summarize([calm, wild], "cpu")["unsteady"] == [wild["case"]]


def test_no_results_make_an_empty_summary() -> None:
    assert summarize([], "cpu") == {"disagreeing": [], "unsteady": [], "whole": [], "parts": [], "verdicts": []}


def test_a_geometric_mean_multiplies() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 8.0, 1.0]) == pytest.approx(2.0)


def test_the_targets_on_a_cpu_are_measured_on_the_cases_they_are_about() -> None:
    rows = [
        result(shape=SMALL, torch=2.0, ours=1.0, copy=0.01),
        result(shape=BIG, torch=8.0, ours=1.0, copy=0.2),
        result(shape=BIG, torch=4.0, ours=1.0, copy=0.15),
        result(op="norm", torch=3.0, ours=1.0),
        result(op="norm", torch=12.0, ours=1.0),
        result(op="norm_relu_residual", torch=1.0, ours=1.0),
    ]
    assert found(rows) == {
        "norm: geometric mean of the ratio": 6.0,
        "norm_relu: geometric mean of the ratio": 4.0,
        "norm_relu: smallest ratio": 2.0,
        "norm_relu: smallest ratio from 8 MB": 4.0,
        "norm_relu: smallest share of the byte floor from 8 MB": 0.6,
    }
    assert [(one["op"], one["at_least"], one["goal"]) for one in judge(rows, "cpu")] == [
        ("norm", 2.2, None),
        ("norm_relu", 3.5, 4.5),
        ("norm_relu", 1.0, None),
        ("norm_relu", 2.5, None),
        ("norm_relu", 0.5, 0.7),
    ]


def test_the_targets_on_a_gpu_are_measured_on_big_bfloat16_rows() -> None:
    rows = [
        result(**GPU, torch=6.0, ours=2.0, compile=3.0, copy=0.45),
        result(**GPU, torch=5.0, ours=2.0, compile=4.0, copy=0.4),
        result(**(GPU | {"dtype": "float32"}), torch=1.0, ours=2.0),
        result(**(GPU | {"layout": "contiguous"}), torch=1.0, ours=2.0),
        result(**(GPU | {"shape": BIG}), torch=1.0, ours=2.0),
    ]
    assert found(rows, "cuda") == {
        "norm_relu: smallest ratio, bfloat16 channels_last from 64 MB": 2.5,
        "norm_relu: smallest ratio to torch.compile, of the same": 1.5,
        "norm_relu: smallest share of the byte floor, of the same": 0.8,
    }


def test_the_targets_on_a_gpu_are_these() -> None:
    verdicts = judge([result(**GPU, op="norm_relu_residual", compile=1.0), result(**GPU, op="norm")], "cuda")
    assert [(one["op"], one["at_least"]) for one in verdicts] == [
        ("norm_relu_residual", 2.0),
        ("norm_relu_residual", 1.0),
        ("norm_relu_residual", 0.8),
    ]


def test_a_target_without_a_case_is_left_out() -> None:
    assert "norm_relu: smallest ratio to torch.compile, of the same" not in found([result(**GPU)], "cuda")


@pytest.mark.parametrize(("ours", "met"), [(12 / 2.2, True), (12 / 2.19, False)])
def test_a_target_is_met_by_what_is_at_least_as_much(ours: float, met: bool) -> None:
    assert judge([result(op="norm", torch=12.0, ours=ours)], "cpu") == [
        {
            "op": "norm",
            "what": "geometric mean of the ratio",
            "at_least": 2.2,
            "goal": None,
            "found": pytest.approx(12 / ours),
            "met": met,
        }
    ]


def test_the_lines_name_mean_extremes_targets_and_what_disagrees() -> None:
    big, small = result(copy=1.0, torch=16.0, ours=5.0), result(shape=SMALL, torch=2.0, ours=2.5)
    wrong = disagreeing(op="norm")
    assert summary_lines(summarize([big, small, wrong], "cpu"), cases=3) == [
        f"norm_relu: 2 cases, geometric mean 1.60x torch, least 0.80x at {small['case']}",
        f"  from 8 MB (1 cases): least 3.20x at {big['case']}",
        f"  least share of the byte floor there: 80% at {big['case']}",
        "target not met  norm_relu: geometric mean of the ratio 1.60, at least 3.5 (goal 4.5)",
        "target not met  norm_relu: smallest ratio 0.80, at least 1",
        "target met      norm_relu: smallest ratio from 8 MB 3.20, at least 2.5",
        "target met      norm_relu: smallest share of the byte floor from 8 MB 0.80, at least 0.5 (goal 0.7)",
        f"disagrees with the reference, no speed: {wrong['case']}",
    ]


def test_the_lines_say_when_the_machine_was_not_quiet() -> None:
    calm, wild = (result(op="norm_relu_residual", shape=SMALL) for _ in range(2))
    wild["sides"]["ours"] = side(6.0, p20=0.1, p80=1.5)
    assert summary_lines(summarize([calm, wild], "cpu"), cases=2)[1:] == [
        "unsteady, p80 over twice p20, in 1 of 2 cases: measure again on a quiet machine"
    ]


def test_the_lines_have_the_ratio_to_compile_where_it_was_measured() -> None:
    (line, *_) = summary_lines(summarize([result(shape=SMALL, compile=9.0)], "cpu"), cases=1)
    assert "geometric mean 2.00x torch and 1.50x torch.compile, least" in line
