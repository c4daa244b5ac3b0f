from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from steadynorm.bench import inference
from steadynorm.bench.commands import COMMANDS, table_of
from steadynorm.bench.inference import BENCHMARK
from steadynorm.bench.record import Json, read_record
from steadynorm.bench.step import StepFlags
from steadynorm.bench.timing import Provider
from steadynorm.reporting.failure import UserError
from tests.support.bench import Lines, times_as

TINY = StepFlags(networks=("resnet20",), batch=2, precision="fp32", seconds=1e-6, inference=True, device="cpu")
MS = {"none": 4.0, "torch_batch_norm": 10.0, "batch_norm": 8.0, "folded": 5.0}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times be as in ``MS``."""
    times_as(monkeypatch, inference, MS)


def measure(config: StepFlags = TINY) -> Json:
    return BENCHMARK.measure("resnet20", config, {"device": "cpu", "precision": "fp32"})


@pytest.mark.usefixtures("made_up")
def test_the_folded_network_is_compared_with_the_one_it_was() -> None:
    row = measure()
    assert (row["folded_from"], row["folded"], row["speedup"]) == ("torch_batch_norm", 19, 2.0)
    assert row["over_none"] == {"none": 1.0, "torch_batch_norm": 2.5, "batch_norm": 2.0, "folded": 1.25}
    assert 0 <= row["largest_relative_error"] < 1e-5


@pytest.mark.usefixtures("made_up")
def test_ours_is_folded_where_torchs_is_not_asked_for() -> None:
    row = measure(replace(TINY, norms=("batch_norm",)))
    assert (row["folded_from"], row["folded"], row["speedup"], row["over_none"]) == ("batch_norm", 19, 1.6, {})


def test_a_norm_that_cannot_be_folded_is_refused() -> None:
    with pytest.raises(UserError, match="--norms must have torch_batch_norm or batch_norm"):
        BENCHMARK.run(replace(TINY, norms=("none", "group_norm")), Lines())


def test_all_networks_are_really_timed_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    right = inference.inference

    def noting(model: nn.Module, x: torch.Tensor, precision: str) -> Provider:
        seen.append((model.training, sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())))
        return right(model, x, precision)  # type: ignore[arg-type]

    monkeypatch.setattr(inference, "inference", noting)
    row = measure()
    assert seen == [(False, 0), (False, 19), (False, 19), (False, 0)]
    assert all(ms["median"] > 0 for ms in row["ms"].values())
    assert row["samples"] == 7


@pytest.mark.usefixtures("made_up")
def test_each_provider_is_a_line_and_folding_another() -> None:
    assert BENCHMARK.lines(measure() | {"largest_relative_error": 2e-7}) == [
        "resnet20  none                   4.00 ms (4.00-4.00)         1.00 of none",
        "resnet20  torch_batch_norm      10.00 ms (10.00-10.00)       2.50 of none",
        "resnet20  batch_norm             8.00 ms (8.00-8.00)         2.00 of none",
        "resnet20  folded                 5.00 ms (5.00-5.00)         1.25 of none",
        "resnet20  folding 19 norms of torch_batch_norm: 2.00 times as fast,"
        " largest error 2.0e-07 of the largest output",
    ]


@pytest.mark.usefixtures("made_up")
def test_the_record_is_kept_and_makes_a_table(tmp_path: Path) -> None:
    BENCHMARK.run(replace(TINY, out=tmp_path), Lines())
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("bench_inference_cpu_")
    record = read_record(path)
    command = "steadynorm bench step --device cpu --networks resnet20 --batch 2 --inference"
    assert record["command"].startswith(command)
    table = table_of(record).splitlines()
    assert table[2] == (
        "| one forward of | none, ms | torch_batch_norm, ms | batch_norm, ms | folded, ms | "
        "speed of folded, unfolded = 1 | largest error |"
    )
    assert table[4].startswith("| resnet20 | 4.00 | 10.00 | 8.00 | 5.00 | 2.00 | ")


@pytest.mark.usefixtures("made_up")
def test_the_command_of_steps_with_the_flag_is_this_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    _, command = COMMANDS["step"]
    assert command(TINY) == 0
    assert "folding 19 norms" in capsys.readouterr().out


def test_a_watch_is_refused_where_nothing_trains() -> None:
    with pytest.raises(UserError, match="Drop --inference"):
        BENCHMARK.plan(replace(TINY, watch=True), {"device": "cpu"}, Lines())
