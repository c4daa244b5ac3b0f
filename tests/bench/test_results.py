import json

import pytest

from steadynorm.bench.results import case_to_json, make_side_result
from steadynorm.bench.timing import Sample
from tests.support.bench import disagreeing, result

SAMPLES = [Sample(parts_ms=(1.0 * k, 3.0 * k), host_ms=0.5 * k) for k in (1, 2, 3, 4, 6)]


def test_a_side_has_medians_of_the_whole_and_of_its_parts() -> None:
    side = make_side_result(SAMPLES, floor_bytes=1)
    assert (side.ms.median, side.forward_ms, side.backward_ms, side.host_ms) == (12.0, 3.0, 9.0, 1.5)
    assert side.samples == 5


def test_bandwidth_is_the_floors_bytes_over_the_median() -> None:
    assert make_side_result(SAMPLES, floor_bytes=24_000_000).gb_per_s == 2.0


def test_a_copy_has_no_parts() -> None:
    side = make_side_result([Sample(parts_ms=(2.0,), host_ms=2.0)], floor_bytes=1)
    assert (side.ms.median, side.forward_ms, side.backward_ms, side.peak_bytes) == (2.0, None, None, None)


def test_the_ratio_is_torchs_time_over_ours() -> None:
    assert result(torch=12.0, ours=4.0).ratio == 3.0


def test_the_ratio_to_compile_is_there_where_it_was_measured() -> None:
    assert result(compile=8.0, ours=4.0).ratio_to_compile == 2.0
    assert result().ratio_to_compile is None


@pytest.mark.parametrize(("op", "share"), [("norm", 0.4), ("norm_relu", 0.4), ("norm_relu_residual", 0.6)])
def test_the_share_of_the_floor_is_four_copies_or_six_over_our_time(op: str, share: float) -> None:
    assert result(op=op, copy=0.5, ours=5.0).floor_share == pytest.approx(share)


def test_a_case_is_recorded_with_everything_about_it() -> None:
    stored = json.loads(json.dumps(case_to_json(result(copy=1.0, torch=12.0, ours=6.0, compile=9.0))))
    assert (stored["op"], stored["shape"], stored["dtype"], stored["layout"]) == (
        "norm_relu",
        [32, 512, 14, 14],
        "float32",
        "contiguous",
    )
    assert stored["x_bytes"] == 12_845_056
    assert (stored["network"], stored["backend"], stored["reason"]) == ("resnet50", "numba", "made up")
    assert stored["agreement"] == {"agrees": True, "what": "dx", "error": 1e-6, "allowed": 2e-6}
    assert list(stored["sides"]) == ["copy", "torch", "ours", "compile"]
    assert stored["sides"]["ours"] == {
        "ms": {"median": 6.0, "p20": 0.9 * 6, "p80": 1.2 * 6},
        "forward_ms": 1.5,
        "backward_ms": 4.5,
        "host_ms": 6.0,
        "samples": 7,
        "gb_per_s": 1.0,
        "peak_bytes": 6_000_000,
        "saved": {"new_bytes": 3, "given_bytes": 5},
    }
    assert (stored["ratio"], stored["ratio_to_compile"]) == (2.0, 1.5)
    assert stored["floor_share"] == pytest.approx(4 / 6)


def test_a_case_that_disagrees_is_recorded_without_speeds() -> None:
    stored = case_to_json(disagreeing())
    assert stored["agreement"]["agrees"] is False
    assert stored["sides"] == {}
    assert "ratio" not in stored
