import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steadynorm.bench.moved import moved_record
from steadynorm.lab.experiments import statistics
from steadynorm.lab.experiments.statistics import EXPERIMENT, StatisticsConfig, describe, errors, predict
from steadynorm.layers import BatchNorm2d
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Measurement, Record, read_record
from tests.support.experiments import Recorder, on_tiny_data
from tests.support.given_networks import HERE
from tests.support.layers import drawn

RESULT = Path(__file__).parents[3] / "docs" / "results" / "bench_statistics_cpu_20261122.json"
CHANNELS, COUNT = 16, 100


def log_of(drift: float, *, steps: int = 400) -> Tensor:
    """Means that walk by ``drift`` a step under noise of size 0.1, variances about 4 of relative noise 0.1."""
    walk = drawn(steps, CHANNELS, seed=1).cumsum(0) * drift
    mean = walk + 0.1 * drawn(steps, CHANNELS, seed=2)
    return torch.stack((mean, 4 + 0.4 * drawn(steps, CHANNELS, seed=3)), 1)


def test_momentum_1_predicts_the_last_batch() -> None:
    log = log_of(0.1)
    torch.testing.assert_close(torch.from_numpy(predict(log, COUNT, momentum=1.0))[1:], log[:-1])


def test_a_fixed_momentum_begins_with_the_average() -> None:
    log = log_of(0.1)
    predicted = torch.from_numpy(predict(log, COUNT, momentum=0.25))
    weights = torch.tensor([0.75**2, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(predicted[3], (weights.view(3, 1, 1) * log[:3]).sum(0) / weights.sum())


def test_torchs_begins_at_mean_0_and_variance_1() -> None:
    log = log_of(0.1)
    norm = torch.nn.BatchNorm1d(CHANNELS, affine=False).double()
    predicted = torch.from_numpy(predict(log, COUNT, momentum=0.1, from_torchs_start=True))
    for step in range(3):
        torch.testing.assert_close(predicted[step], torch.stack((norm.running_mean, norm.running_var)))  # type: ignore[arg-type]
        x = drawn(COUNT, CHANNELS, seed=9)
        mean, var = log[step]
        norm((x - x.mean(0)) / x.std(0) * var.sqrt() + mean)


def test_errors_are_in_variances_and_over_the_best_momentum() -> None:
    """Without drift the slowest is best; the last batch, of the same noise, errs twice as far: 2 and about 1."""
    found = errors(log_of(0.0), COUNT)
    assert (found["best_momentum"], found["var_best_momentum"]) == (2.0**-10, 2.0**-10)
    assert (found["best_error"], found["var_best_error"]) == pytest.approx((0.01 / 4, 0.16 / 16), rel=0.1)
    assert (found["self_tuned"], found["var_self_tuned"]) == pytest.approx((1, 1), rel=0.02)


def test_where_means_walk_fast_a_large_momentum_is_best() -> None:
    found = errors(log_of(1.0), COUNT)
    assert (found["best_momentum"], found["var_best_momentum"]) == (1.0, 2.0**-10)
    assert found["torchs"] > 3
    assert found["self_tuned"] < 1.06


def test_what_goes_into_a_layer_is_kept() -> None:
    kept: list[Tensor] = []
    counts: dict[str, int] = {}
    norm = BatchNorm2d(3)
    norm.register_forward_pre_hook(statistics._keeper(kept, counts, "a"))
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    norm(x)
    assert counts == {"a": 100}
    torch.testing.assert_close(kept[0], torch.stack((x.mean((0, 2, 3)), x.var((0, 2, 3)))))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Record, list[Tensor]]]:
    """A run of twelve steps in batches of 16, six to an epoch, with its logs."""
    logs: list[Tensor] = []
    right = statistics.errors
    config = StatisticsConfig(steps=12, batch_size=16, precision="fp32", out=tmp_path_factory.mktemp("runs") / "a")
    with pytest.MonkeyPatch.context() as patch, on_tiny_data():
        patch.setattr(statistics, "errors", lambda log, count: (logs.append(log), right(log, count))[1])
        yield read_record(EXPERIMENT.run(config, Recorder())), logs


def test_every_layer_of_a_training_is_measured(ran: tuple[Record, list[Tensor]]) -> None:
    (cell,) = ran[0].cells
    channels = {f"norm{at}": width for at, width in enumerate((32, 32, 64, 64, 128, 128), start=1)}
    assert (cell.factors, cell.status, cell.values("channels")) == ({"seed": 0}, "finished", channels)
    assert all(value > 0 for value in cell.values("var_best_error").values())


def test_every_step_is_logged_over_epochs(ran: tuple[Record, list[Tensor]]) -> None:
    assert [log.shape for log in ran[1]] == [(12, 2, width) for width in (32, 32, 64, 64, 128, 128)]
    assert ran[1][0].dtype == torch.float64
    assert not torch.equal(ran[1][0][0], ran[1][0][6])


def made_record(*self_tuned: tuple[float, float]) -> Record:
    """A record of layers with these errors of mean and variance, in one seed."""
    rows = []
    for at, (mean, var) in enumerate(self_tuned, start=1):
        values = {"channels": 8.0, "best_momentum": 0.5, "var_best_momentum": 0.25, "best_error": 0.1}
        values |= {"var_best_error": 0.2, "self_tuned": mean, "var_self_tuned": var, "torchs": 3.0, "var_torchs": 2.0}
        rows += [Measurement(subject=f"norm{at}", quantity=name, value=value) for name, value in values.items()]
    cells = (Cell(factors={"seed": 0}, status="finished", measurements=tuple(rows)),) if rows else ()
    return replace(moved_record(json.loads(RESULT.read_text())), cells=cells)


@pytest.mark.parametrize(("worst", "verdict"), [(1.06, "met"), (1.07, "not met")])
def test_a_report_has_averages_the_worst_layer_and_whether_that_will_do(worst: float, verdict: str) -> None:
    report = describe(made_record((0.98, 0.9), (worst, 1.0)))
    (claim,) = report.claims
    average = (0.98 + worst) / 2
    assert claim.verdict == verdict
    assert claim.measured == (
        f"Averages over the layers: mean {average:.3f} (worst layer {worst:.3f}), variance 0.950 (worst layer 1.000)."
    )
    assert [cell.text for cell in report.table.rows[1]] == [
        "norm2",
        "8",
        "0.5, 0.25",
        f"{worst:.3f}, 1.000",
        "3.0, 2.0",
    ]
    assert report.headline == f"Self-tuned statistics err at most {worst:.2f} times as much as the best fixed momentum"


def test_a_report_before_the_first_seed_says_so() -> None:
    report = describe(made_record())
    assert (report.claims[0].verdict, report.figures, report.finished) == ("not measured", (), False)


def test_the_record_in_docs_gives_the_numbers_that_it_holds() -> None:
    old = json.loads(RESULT.read_text())
    report = describe(moved_record(old))
    for row, one in zip(report.table.rows, old["layers"], strict=True):
        (best, best_var), (tuned, tuned_var), (torchs, torchs_var) = (
            one[name] for name in ("best_momentum", "self_tuned", "torchs")
        )
        assert [cell.text for cell in row] == [
            one["layer"],
            str(one["channels"]),
            f"{best:.2g}, {best_var:.2g}",
            f"{tuned:.3f}, {tuned_var:.3f}",
            f"{torchs:.1f}, {torchs_var:.1f}",
        ]
    found = report.findings["self_tuned"]
    assert found["average"] == pytest.approx(old["self_tuned"]["average"], rel=1e-4)
    assert found["worst"] == pytest.approx(old["self_tuned"]["worst"], rel=1e-4)
    assert report.claims[0].verdict == "met"
    assert "by the momenta 1, 1/2, ... 1/1024, which" in " ".join(report.method)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"seeds": (-1,)}, "--seeds"), ({"steps": 1}, "--steps: must be at least 2, got 1"), ({"lr": 0.0}, "--lr")],
)
def test_what_predicts_nothing_is_refused(wrong: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        EXPERIMENT.run(replace(StatisticsConfig(out=tmp_path / "a"), **wrong), Recorder())  # type: ignore[arg-type]


def test_the_network_may_be_the_users(tmp_path: Path) -> None:
    config = StatisticsConfig(network=f"{HERE}:make", steps=2, batch_size=16, precision="fp32", out=tmp_path / "run")
    with on_tiny_data():
        EXPERIMENT.run(config, Recorder())
    (cell,) = read_record(tmp_path / "run").cells
    assert cell.values("channels") == {"1": 16, "5": 32}


def test_an_unknown_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no network is called 'bogus'"):
        EXPERIMENT.run(StatisticsConfig(network="bogus", out=tmp_path / "run"), Recorder())
