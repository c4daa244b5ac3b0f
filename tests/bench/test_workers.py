import math
from pathlib import Path

import pytest

from steadynorm.bench.commands import table_of
from steadynorm.bench.record import read_record
from steadynorm.bench.workers import BENCHMARK, WorkersFlags, differences, fit
from tests.support.bench import Lines


def test_a_line_is_found_in_times_that_lie_on_it() -> None:
    sizes = [256.0, 4096.0, 65536.0, 1e6]
    line = fit(sizes, [5e-5 + size / 2e9 for size in sizes])
    assert line == {"latency": pytest.approx(5e-5), "bandwidth": pytest.approx(2e9)}


def test_small_sizes_count_as_much_as_large_ones() -> None:
    """A large time that is off by a tenth does not move the latency by more than a few percent."""
    sizes = [256.0, 1024.0, 4096.0, 1e8]
    times = [5e-5 + size / 2e9 for size in sizes]
    assert fit(sizes, [*times[:-1], 1.1 * times[-1]])["latency"] == pytest.approx(5e-5, rel=0.05)


def test_neither_latency_nor_time_for_a_byte_is_below_zero() -> None:
    assert fit([1.0, 2.0, 4.0], [4.0, 2.0, 1.0])["bandwidth"] == math.inf
    assert fit([1.0, 2.0, 4.0], [0.5, 2.0, 8.0])["latency"] == 0.0


def test_differences_are_those_of_paired_rounds() -> None:
    assert differences([3.0, 5.0], [1.0, 4.0]) == [2.0, 1.0]


@pytest.mark.slow
def test_two_workers_are_timed_in_all_three_forms_and_the_record_is_kept(tmp_path: Path) -> None:
    shown = Lines()
    config = WorkersFlags(workers=(1, 2), batch=4, precision="fp32", seconds=0.2, out=tmp_path)
    record = BENCHMARK.run(config, shown)
    one, two = record["costs"]
    assert (one["workers"], two["workers"]) == (1, 2)
    for each in (one, two):
        assert set(each["step_ms"]) == set(each["images_per_second"]) == {"apart", "gradients", "synchronised"}
        for name, step in each["step_ms"].items():
            assert 0 < step["p20"] <= step["median"] <= step["p80"]
            images = each["workers"] * config.batch
            assert each["images_per_second"][name] == pytest.approx(1e3 * images / step["median"], rel=1e-6)
    assert one["all_reduce"] is None and two["all_reduce"]["bandwidth"] > 0
    assert record["norms"] == 6 and record["parameters"] > 200_000
    (path,) = tmp_path.glob("bench_workers_cpu_*.json")
    assert read_record(path)["costs"][1]["workers"] == 2
    assert table_of(record).count("\n| 2 | ") == 1
    assert len(BENCHMARK.closing(record)) == 2 and "2 workers: " in shown.lines[1]


def test_the_share_of_each_is_beside_the_first() -> None:
    costs = [
        {"workers": 2, "images_per_second": {"synchronised": 200.0}},
        {"workers": 4, "images_per_second": {"synchronised": 300.0}},
    ]
    assert BENCHMARK.closing({"costs": costs}) == [
        "2 workers: 200 images/s synchronised, 100 % of the first's for each",
        "4 workers: 300 images/s synchronised, 75 % of the first's for each",
    ]
