from dataclasses import replace

import pytest

from steadynorm.bench.summary import Extreme, summarize
from steadynorm.bench.timing import Spread
from tests.support.bench import disagreeing, result

SMALL = (1, 512, 14, 14)
RESULTS = [
    result(shape=SMALL, torch=2.0, ours=1.0, copy=0.01),
    result(torch=4.0, ours=1.0, copy=0.2),
    result(torch=8.0, ours=1.0, copy=0.15, layout="channels_last"),
    result(torch=5.0, ours=1.0, op="norm", dtype="bfloat16"),
]


def test_each_operation_is_summarized_over_all_its_cases() -> None:
    relu, bare = summarize(RESULTS, "cpu").whole
    assert (relu.op, relu.dtype, relu.layout, relu.cases) == ("norm_relu", None, None, 3)
    assert relu.ratio == pytest.approx(4.0)
    assert relu.least_ratio == Extreme(value=2.0, case=RESULTS[0].case.label)
    assert (relu.big_mb, relu.big_cases) == (8, 2)
    assert relu.least_big_ratio == Extreme(value=4.0, case=RESULTS[1].case.label)
    assert relu.least_big_share == Extreme(value=0.6, case=RESULTS[2].case.label)
    assert (bare.op, bare.cases, bare.ratio) == ("norm", 1, pytest.approx(5.0))


def test_each_dtype_and_layout_of_an_operation_is_summarized_too() -> None:
    parts = summarize(RESULTS, "cpu").parts
    assert [(part.op, part.dtype, part.layout, part.cases) for part in parts] == [
        ("norm_relu", "float32", "contiguous", 2),
        ("norm_relu", "float32", "channels_last", 1),
        ("norm", "bfloat16", "contiguous", 1),
    ]
    assert parts[0].ratio == pytest.approx(8**0.5)


def test_without_a_big_case_nothing_is_said_about_big_cases() -> None:
    (relu,) = summarize(RESULTS[:1], "cpu").whole
    assert (relu.big_cases, relu.least_big_ratio, relu.least_big_share) == (0, None, None)


def test_eight_megabytes_are_big() -> None:
    (relu,) = summarize([result(shape=(1, 2_000_000, 1, 1)), result(shape=(1, 1_999_999, 1, 1))], "cpu").whole
    assert relu.big_cases == 1


def test_big_is_another_size_on_a_gpu() -> None:
    (relu,) = summarize([result(), result(shape=(256, 512, 14, 14))], "cuda").whole
    assert (relu.big_mb, relu.big_cases) == (64, 1)


def test_ratios_to_compile_are_averaged_where_they_are() -> None:
    (relu,) = summarize([result(compile=12.0), result(compile=3.0), result()], "cpu").whole
    assert relu.ratio_to_compile == pytest.approx(1.0)
    assert summarize([result()], "cpu").whole[0].ratio_to_compile is None


def test_a_case_that_disagrees_is_named_and_counts_nowhere() -> None:
    wrong = disagreeing(dtype="bfloat16")
    summary = summarize([*RESULTS, wrong], "cpu")
    assert summary.disagreeing == [wrong.case.label]
    assert (summary.whole, summary.parts, summary.verdicts) == (
        summarize(RESULTS, "cpu").whole,
        summarize(RESULTS, "cpu").parts,
        summarize(RESULTS, "cpu").verdicts,
    )


@pytest.mark.parametrize("name", ["copy", "torch", "ours"])
def test_a_case_is_unsteady_where_a_sides_percentiles_lie_far_apart(name: str) -> None:
    calm = result()
    sides = {p80: dict(calm.sides) for p80 in (2.0, 2.1)}
    for p80 in sides:
        sides[p80][name] = replace(calm.sides[name], ms=Spread(median=1.5, p20=1.0, p80=p80))
    results = [replace(calm, sides=sides[2.0]), replace(result(op="norm"), sides=sides[2.1])]
    assert summarize(results, "cpu").unsteady == [results[1].case.label]


def test_the_targets_are_judged() -> None:
    assert [verdict.op for verdict in summarize(RESULTS, "cpu").verdicts] == ["norm", *["norm_relu"] * 4]


def test_no_results_make_an_empty_summary() -> None:
    summary = summarize([], "cpu")
    assert (summary.disagreeing, summary.whole, summary.parts, summary.verdicts) == ([], [], [], [])
