import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steadynorm.bench import timing
from steadynorm.bench.timing import (
    Mark,
    Provider,
    Sample,
    cache_bytes,
    make_clock,
    make_step_clock,
    quantiles,
    time_providers,
)

CPU = torch.device("cpu")


def mark_three_times(mark: Mark) -> None:
    for _ in range(3):
        mark()


def counting_clock(provider: Provider) -> list[Sample]:
    provider(lambda: None)
    return [Sample(parts_ms=(1.0, 2.0), host_ms=3.0)]


def order_of(names: str, **given: Any) -> str:
    """Give the order after the warm-up: three calls of each."""
    ran: list[str] = []
    providers: dict[str, Provider] = {name: lambda mark, name=name: ran.append(name) for name in names}  # type: ignore[misc]
    samples = time_providers(providers, counting_clock, **given)
    assert {name: len(found) for name, found in samples.items()} == {name: ran.count(name) - 3 for name in names}
    assert "".join(ran[: 3 * len(names)]) == 3 * names
    return "".join(ran[3 * len(names) :])


def test_each_round_begins_one_provider_further_on() -> None:
    assert order_of("abc", seconds=0) == "abcbcacab" * 2 + "abc"


def test_without_a_provider_nothing_is_timed() -> None:
    assert order_of("", seconds=10) == ""


def test_several_processes_decide_together_whether_another_round_begins() -> None:
    asked: list[bool] = []
    wishes = iter([True, True, False])

    def decide(more: bool) -> bool:
        asked.append(more)
        return next(wishes)

    assert order_of("ab", seconds=0, least_rounds=2, decide=decide) == "abba" * 2
    assert asked == [False] * 3


def test_rounds_go_on_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(100)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(seconds)))
    # One look at the start, none for seven rounds, then one before each further round.
    assert len(order_of("ab", seconds=10)) == 2 * (7 + 9)


def test_the_cpu_clock_gives_the_time_from_mark_to_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5_000_000, 7_000_000, 12_500_000])
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(times))
    (sample,) = make_clock(CPU)(mark_three_times)
    assert sample.parts_ms == (2.0, 5.5)
    assert (sample.total_ms, sample.host_ms) == (7.5, 7.5)


def test_whole_steps_on_a_cpu_are_timed_like_anything_else() -> None:
    assert make_step_clock(CPU) is make_clock(CPU)


class FakeCuda:
    """A device whose every call takes a millisecond, and the host's clock, which goes on by 10 ms a look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.slept: list[int] = []
        self.now = 0.0
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("event")
                fake.now += 1.0
                self.at = fake.now

            def elapsed_time(self, end: "Event") -> float:
                return end.at - self.at

        host = itertools.count(500)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: self.log.append("wait"))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: (self.log.append("spin"), self.slept.append(cycles)))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(host) * 0.01)


def test_the_cuda_clock_queues_calls_behind_a_spinning_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    clock = make_clock(torch.device("cuda"))
    samples = clock(mark_three_times)
    assert fake.log == ["wait", "spin", *["event"] * 30, "wait"]
    assert [sample.parts_ms for sample in samples] == [(1.0, 1.0)] * 10
    assert samples[0].host_ms == pytest.approx(1.0)


def test_the_device_spins_longer_than_queueing_took_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    clock = make_clock(torch.device("cuda"))
    for _ in range(2):
        clock(lambda mark: None)
    assert fake.slept[0] > 2e9 * 0.02
    assert fake.slept[1] == pytest.approx(2e9 * 0.01 * 1.5)


def test_whole_steps_on_a_gpu_are_waited_for_after_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    (sample,) = make_step_clock(torch.device("cuda"))(lambda mark: fake.log.append("step"))
    assert fake.log == ["wait", *["step"] * 10, "wait"]
    assert sample.total_ms == pytest.approx(2.0)  # two looks at the clock apart
    assert sample.host_ms == pytest.approx(1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [make_clock, make_step_clock])
def test_the_gpus_clocks_give_times(make: Callable[[torch.device], timing.Clock]) -> None:
    x = torch.zeros(1 << 20, device="cuda")

    def work(mark: Mark) -> None:
        mark()
        x.add_(1)
        mark()

    assert all(0 < sample.total_ms < 1000 for sample in make(x.device)(work))


def test_quantiles_are_the_median_with_two_percentiles() -> None:
    assert quantiles([float(value) for value in range(10, -1, -1)]) == {"p20": 2.0, "median": 5.0, "p80": 8.0}


def make_cache(place: Path, *, cpu: int, index: int, level: int, size: str, shared: str) -> None:
    directory = place / f"cpu{cpu}" / "cache" / f"index{index}"
    directory.mkdir(parents=True)
    for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
        (directory / name).write_text(f"{value}\n")


def test_every_last_level_cache_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CPUS", tmp_path)
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        make_cache(tmp_path, cpu=cpu, index=2, level=2, size="1024K", shared=str(cpu))
        make_cache(tmp_path, cpu=cpu, index=3, level=3, size="24576K", shared=shared)
    assert cache_bytes(CPU) == 2 * (24 << 20)


def test_a_gpu_says_how_large_its_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50 << 20))
    assert cache_bytes(torch.device("cuda")) == 50 << 20


def test_a_system_that_does_not_say_is_taken_to_have_a_usual_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "CPUS", tmp_path)
    assert cache_bytes(CPU) == 64 << 20
