import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steadynorm import cli
from steadynorm.bench import statistics
from steadynorm.bench.commands import table_of
from steadynorm.bench.statistics import BENCHMARK, LayerErrors, StatisticsConfig, errors, follow
from steadynorm.layers import BatchNorm2d
from steadynorm.reporting.failure import UserError
from tests.support.bench import Lines
from tests.support.layers import drawn

TINY = StatisticsConfig(steps=3, batch=2, precision="fp32")
CHANNELS, COUNT = 16, 100


def log_of(drift: float, *, steps: int = 400) -> Tensor:
    """Means that walk by ``drift`` a step under noise of size 0.1, variances about 4 of relative noise 0.1."""
    walk = drawn(steps, CHANNELS, seed=1).cumsum(0) * drift
    mean = walk + 0.1 * drawn(steps, CHANNELS, seed=2)
    return torch.stack((mean, 4 + 0.4 * drawn(steps, CHANNELS, seed=3)), 1)


def layer(*self_tuned: float) -> LayerErrors:
    mean, var = self_tuned
    return LayerErrors(
        layer="norm1",
        channels=8,
        best_momentum=(0.5, 0.25),
        best_error=(0.1, 0.2),
        self_tuned=(mean, var),
        torchs=(3.0, 2.0),
    )


def errors_as(monkeypatch: pytest.MonkeyPatch, *found: LayerErrors) -> None:
    monkeypatch.setattr(statistics, "_log", lambda *_: {str(at): (torch.zeros(2, 2, 8), 9) for at in range(len(found))})
    results = iter(found)
    monkeypatch.setattr(statistics, "errors", lambda *_: next(results))


def test_momentum_1_foretells_the_last_batch() -> None:
    log = log_of(0.1)
    torch.testing.assert_close(torch.from_numpy(follow(log, COUNT, momentum=1.0))[1:], log[:-1])


def test_a_fixed_momentum_begins_with_the_average() -> None:
    log = log_of(0.1)
    foretold = torch.from_numpy(follow(log, COUNT, momentum=0.25))
    weights = torch.tensor([0.75**2, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(foretold[3], (weights.view(3, 1, 1) * log[:3]).sum(0) / weights.sum())


def test_torchs_begins_at_mean_0_and_variance_1() -> None:
    log = log_of(0.1)
    norm = torch.nn.BatchNorm1d(CHANNELS, affine=False).double()
    foretold = torch.from_numpy(follow(log, COUNT, momentum=0.1, from_torchs_start=True))
    for step in range(3):
        torch.testing.assert_close(foretold[step], torch.stack((norm.running_mean, norm.running_var)))  # type: ignore[arg-type]
        x = drawn(COUNT, CHANNELS, seed=9)
        mean, var = log[step]
        norm((x - x.mean(0)) / x.std(0) * var.sqrt() + mean)


def test_errors_are_in_variances_and_over_the_best_momentum() -> None:
    """Without drift the slowest is best; the last batch, of the same noise, errs twice as far: 2 and about 1."""
    log = log_of(0.0)
    found = errors("norm1", log, COUNT)
    assert found.best_momentum == (2.0**-10, 2.0**-10)
    assert found.best_error == pytest.approx((0.01 / 4, 0.16 / 16), rel=0.1)
    assert found.self_tuned == pytest.approx((1, 1), rel=0.02)
    assert (found.layer, found.channels) == ("norm1", CHANNELS)


def test_where_means_walk_fast_a_large_momentum_is_best() -> None:
    found = errors("norm1", log_of(1.0), COUNT)
    assert found.best_momentum == (1.0, 2.0**-10)
    assert found.torchs[0] > 3
    assert found.self_tuned[0] < 1.06


def test_what_goes_into_a_layer_is_kept() -> None:
    kept: list[Tensor] = []
    counts: dict[str, int] = {}
    norm = BatchNorm2d(3)
    norm.register_forward_pre_hook(statistics._keeper(kept, counts, "a"))
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    norm(x)
    assert counts == {"a": 100}
    torch.testing.assert_close(kept[0], torch.stack((x.mean((0, 2, 3)), x.var((0, 2, 3)))))


def test_every_layer_of_a_training_is_followed() -> None:
    shown = Lines()
    record = BENCHMARK.run(TINY, shown)
    assert [(one["layer"], one["channels"]) for one in record["layers"]] == [
        (f"norm{at}", channels) for at, channels in enumerate((32, 32, 64, 64, 128, 128), start=1)
    ]
    assert ("training", 3, 3) in shown.done
    assert all(value > 0 for one in record["layers"] for value in one["best_error"])


def test_every_step_is_logged_over_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    from steadynorm.lab import data

    right = data.load_dataset

    def few(*given: object, **named: object) -> data.Dataset:
        dataset = right(*given, **named)  # type: ignore[arg-type]
        train = replace(dataset.train, pixels=dataset.train.pixels[:4], labels=dataset.train.labels[:4])
        return replace(dataset, train=train)

    monkeypatch.setattr(data, "load_dataset", few)
    logs = statistics._log(replace(TINY, steps=5), torch.device("cpu"), "fp32", Lines())
    assert {log.shape for log, _ in logs.values()} == {(5, 2, 32), (5, 2, 64), (5, 2, 128)}
    log, count = logs["norm1"]
    assert (log.dtype, count) == (torch.float64, 2 * 32 * 32)
    assert not torch.equal(log[0], log[2])


@pytest.mark.parametrize(("worst", "met"), [(1.06, True), (1.07, False)])
def test_a_record_has_averages_the_worst_layer_and_whether_that_will_do(
    worst: float, met: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    errors_as(monkeypatch, layer(0.98, 0.9), layer(worst, 1.0))
    cli.main(["bench", "statistics", "--out", str(tmp_path), "--data-dir", "there"])
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    found = record["self_tuned"]
    assert (record["command"], record["config"]["data_dir"]) == (
        "steadynorm bench statistics --data-dir there",
        "there",
    )
    assert found["average"] == pytest.approx([(0.98 + worst) / 2, 0.95])
    assert (found["worst"], found["met"]) == ([worst, 1.0], met)
    rows = table_of(record).splitlines()
    assert "cnn on shapes, batch 128, rate 0.1, 500 steps; " in rows[0]
    assert rows[-1] == f"| norm1 | 8 | 0.5, 0.25 | {worst:.3f}, 1.000 | 3.0, 2.0 |"
    lines = capsys.readouterr().out.splitlines()
    expected = "best momentum 0.5, 0.25  self-tuned 0.980, 0.900  torch's 0.1 3.00, 2.00"
    assert lines[0].split(maxsplit=3) == ["norm1", "8", "channels", expected]
    assert lines[-1].endswith(f"at most 1.06 {'met' if met else 'not met'}")


def test_a_seed_may_be_0_and_not_below() -> None:
    with pytest.raises(UserError, match="--seed: must be at least 0, got -1"):
        BENCHMARK.run(replace(TINY, seed=-1), Lines())


def test_one_step_foretells_nothing() -> None:
    with pytest.raises(UserError, match="at least 2, got 1"):
        BENCHMARK.run(replace(TINY, steps=1), Lines())
