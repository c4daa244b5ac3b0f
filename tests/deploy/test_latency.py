from pathlib import Path
from types import SimpleNamespace

import pytest

from steadynorm.deploy.latency import ROUNDS, WARM_UP, measure
from steadynorm.deploy.report import best_of
from steadynorm.deploy.results import Artifact, Outcome

FAST, SLOW, NONE = (Artifact(name=name, format="onnx", quantize="none", file=name) for name in ("fast", "slow", "none"))


class Fake:
    """A server whose requests take as long as set; single images 1, 2, 3, ... times that."""

    def __init__(self, name, ms, asked):
        self.name, self.ms, self.asked = name, ms, asked
        self.load_ms, self.answered = 7.0 * ms, 0

    def ask(self, do, *, images, batch, requests, warm_up):
        assert (do, images) == ("time", "images.npy")
        self.asked.append((self.name, batch, requests, warm_up))
        if batch > 1:
            return {"ms": [self.ms * batch / 2] * (requests - 1) + [1e9], "peak_mib": 1e9}
        self.answered += requests
        first = self.answered - requests
        return {"ms": [self.ms * (first + index + 1) for index in range(requests)], "peak_mib": self.ms + 3}


@pytest.fixture
def measured():
    asked = []
    servers = {"fast": Fake("fast", 1.0, asked), "slow": Fake("slow", 10.0, asked)}
    found = measure([FAST, NONE, SLOW], servers, images=Path("images.npy"), requests=101, batch_sizes=(1, 8))
    return {one.name: one for one in found}, asked


def test_percentiles_are_of_all_requests_of_one_image(measured):
    fast, slow = measured[0]["fast"].latency, measured[0]["slow"].latency
    assert (fast.requests, fast.p50, fast.p90, fast.p95, fast.p99) == (101, 51.0, 91.0, 96.0, 100.0)
    assert (slow.p50, slow.p90, slow.p99) == (510.0, 910.0, 1000.0)


def test_throughput_is_images_of_the_median_request(measured):
    """A batch of 8 takes half as long as 8 images; one request of each turn is an outlier."""
    assert measured[0]["fast"].images_per_second == {"1": 1000 / 51, "8": 2000.0}
    assert measured[0]["slow"].images_per_second["8"] == 200.0


def test_memory_is_that_of_single_images_and_the_start_is_the_servers(measured):
    assert (measured[0]["slow"].peak_mib, measured[0]["slow"].load_ms) == (13.0, 70.0)


def test_what_is_not_served_stays_as_it_is(measured):
    assert list(measured[0]) == ["fast", "none", "slow"] and measured[0]["none"] is NONE


def test_servers_take_turns_and_every_round_begins_with_another(measured):
    single = [one for one in measured[1] if one[1] == 1]
    assert [name for name, *_ in single[:6]] == ["fast", "slow", "slow", "fast", "fast", "slow"]
    assert len(single) == 2 * ROUNDS and {warm_up for *_, warm_up in single} == {WARM_UP}
    assert sum(count for name, _, count, _ in single if name == "fast") == 101


def test_fewer_requests_than_rounds_are_all_made():
    asked = []
    found = measure([FAST], {"fast": Fake("fast", 1.0, asked)}, images=Path("images.npy"), requests=3, batch_sizes=())
    assert found[0].latency.requests == 3 and len(asked) == 3


def test_the_best_is_the_fastest_that_is_kept(measured):
    eager = SimpleNamespace(**vars(measured[0]["fast"]) | {"file": ""})
    outcome = Outcome(model="a", parameters=1, norms=0, steps=(), artifacts=(eager, *measured[0].values()))
    assert best_of(outcome) is measured[0]["fast"]
