import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steadynorm.lab.configuration import quickened
from steadynorm.lab.data import batches
from steadynorm.lab.experiments import compare, landscape
from steadynorm.lab.experiments.landscape import LandscapeConfig
from steadynorm.lab.networks import build_network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Record, read_record
from tests.support.experiments import TINY as COMPARE
from tests.support.experiments import Recorder, kill, on_tiny_data, tiny_dataset

TINY = LandscapeConfig(
    epochs=2, batch_size=16, depth=2, widths=(4, 8), precision="fp32", lr=0.05, probe_every=4, rate_steps=(0.5, 2.0)
)
STEPS = 12  # two epochs of 96 images in batches of 16


def run(config: LandscapeConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(landscape.EXPERIMENT.run(config, display or Recorder()))


class Waiting(Recorder):
    """Says when it is in the middle of the second network, and waits there to be killed."""

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        super().advance(name, share, text)
        if len(self.shares) == STEPS + 5:
            print("begun", flush=True)
            time.sleep(600)


def worker(place: str, threads: str) -> None:
    """Run the tiny experiment as a process."""
    torch.set_num_threads(int(threads))
    run(replace(TINY, out=Path(place)), Waiting())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(replace(TINY, out=tmp_path_factory.mktemp("runs") / "undisturbed"))


def measured(cell: Cell, quantity: str, subject: str = "") -> list[tuple[int, float]]:
    return [(row.step, row.value) for row in cell.measurements if (row.quantity, row.subject) == (quantity, subject)]


def same(first: Record, second: Record) -> bool:
    return [(cell.factors, cell.measurements) for cell in first.cells] == [
        (cell.factors, cell.measurements) for cell in second.cells
    ]


def test_every_arm_and_seed_is_a_cell(tmp_path: Path) -> None:
    display = Recorder()
    record = run(replace(TINY, epochs=1, seeds=(3, 4), out=tmp_path / "a"), display)
    assert [(cell.factors["arm"], cell.factors["seed"]) for cell in record.cells] == [
        (arm, seed) for seed in (3, 4) for arm in ("batch_norm", "noisy_batch_norm", "none")
    ]
    assert all(cell.has_ended for cell in record.cells)
    assert display.shares[:6] == pytest.approx([step / 6 for step in range(1, 7)])


def test_looks_are_regular_and_see_every_length(undisturbed: Record) -> None:
    for cell in undisturbed.cells:
        subjects = [f"rate {length!r}" for length in TINY.rate_steps]
        subjects += [f"weights {length!r}" for length in TINY.weight_steps]
        for subject in ("", *subjects):
            assert [step for step, _ in measured(cell, "loss", subject)] == [0, 4, 8]
        assert [step for step, _ in measured(cell, "val_accuracy")] == [6, 12]


def test_steps_are_as_long_as_their_names_say(undisturbed: Record) -> None:
    for cell in undisturbed.cells:
        norms = {
            quantity: dict(measured(cell, quantity)) for quantity in ("gradient_norm", "weight_norm", "learning_rate")
        }
        for length in TINY.rate_steps:
            assert measured(cell, "eta", f"rate {length!r}") == [(step, length * 0.05) for step in (0, 4, 8)]
        for length in TINY.weight_steps:
            for step, eta in measured(cell, "eta", f"weights {length!r}"):
                moved = eta * norms["gradient_norm"][step] / norms["weight_norm"][step]
                assert moved == pytest.approx(length, rel=1e-12)


def test_norms_of_layers_are_parts_of_the_whole(undisturbed: Record) -> None:
    for cell in undisturbed.cells:
        layers = [dict(measured(cell, "weight_norm", name)) for name in ("conv1", "conv2", "classifier")]
        for step, whole in measured(cell, "weight_norm"):
            assert whole**2 == pytest.approx(sum(layer[step] ** 2 for layer in layers), rel=1e-12)
        for name in ("conv1", "conv2", "classifier"):
            parts = dict(measured(cell, "gradient_norm", name))
            assert all(0 < parts[step] < whole for step, whole in measured(cell, "gradient_norm"))


def test_the_first_look_is_at_the_initial_weights_and_the_batch_of_the_first_step(undisturbed: Record) -> None:
    """Loss, gradient and the loss after half a step, computed by hand for the network without normalization."""
    model = build_network("cnn", arm="none", depth=2, widths=(4, 8), classes=10, seed=0)
    data = tiny_dataset()
    x, labels = next(
        batches(data.train, dataset=data, batch_size=16, seed=0, epoch=1, augment="none", device=torch.device("cpu"))
    )
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    squares = sum(parameter.grad.double().square().sum() for parameter in model.parameters())
    cell = undisturbed.cells[2]
    assert measured(cell, "loss")[0][1] == pytest.approx(loss.item(), rel=1e-5)
    assert measured(cell, "gradient_norm")[0][1] == pytest.approx(squares.sqrt().item(), rel=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.025 * parameter.grad
        after = torch.nn.functional.cross_entropy(model(x), labels)
    assert measured(cell, "loss", "rate 0.5")[0][1] == pytest.approx(after.item(), rel=1e-5)


def trained(config: LandscapeConfig, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Weights, statistics, momentum buffers of all arms, and torch's random numbers, after the last step."""
    kept: list[torch.Tensor] = []
    start = landscape._Trace.start

    def keep(*arguments):
        cell = start(*arguments)
        kept.extend(cell.trainer.model.state_dict(keep_vars=True).values())
        cells.append(cell)
        return cell

    cells: list[landscape._Trace] = []
    with monkeypatch.context() as patch:
        patch.setattr(landscape._Trace, "start", keep)
        run(config)
    kept += [state["momentum_buffer"] for cell in cells for state in cell.trainer.optimizer.state.values()]
    return [*(tensor.detach().clone() for tensor in kept), torch.get_rng_state()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_looking_around_changes_no_bit_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    config = replace(
        TINY, arms=("batch_norm", "noisy_batch_norm", "batch_renorm", "none"), precision=precision, epochs=1
    )
    often = trained(replace(config, probe_every=1, out=tmp_path / "often"), monkeypatch)
    rarely = trained(replace(config, probe_every=10_000, out=tmp_path / "rarely"), monkeypatch)
    assert len(often) == len(rarely) > 50
    assert all(torch.equal(first, second) for first, second in zip(often, rarely, strict=True))


def test_training_is_that_of_the_comparison(tmp_path: Path) -> None:
    """Also where the learning rate is lowered on the way."""
    arms = ("batch_norm", "none")
    record = run(replace(TINY, arms=arms, epochs=4, milestones=(2, 3), out=tmp_path / "a"))
    with on_tiny_data():
        compared = read_record(compare.EXPERIMENT.run(replace(COMPARE, arms=arms, out=tmp_path / "b"), Recorder()))
    for cell, other in zip(record.cells, compared.cells, strict=True):
        for name in ("val_accuracy", "val_loss"):
            assert [*cell.series(name).values()] == [*other.series(name).values()]
        rates = [rate for _, rate in measured(cell, "learning_rate")]
        assert rates == [0.05, 0.05, 0.05, 0.005, 0.005, 0.0005]


def test_rounding_is_measured_where_training_rounds(tmp_path: Path, undisturbed: Record) -> None:
    record = run(replace(TINY, arms=("batch_norm",), epochs=1, precision="bf16", out=tmp_path / "a"))
    rounding = [value for _, value in measured(record.cells[0], "rounding")]
    assert all(2**-9 / 10 < value < 0.2 for value in rounding) and len(rounding) == 2
    assert measured(undisturbed.cells[0], "rounding") == []


def test_noise_makes_another_network_of_the_same_weights(undisturbed: Record) -> None:
    plain, noisy, _ = undisturbed.cells
    assert measured(plain, "weight_norm")[0] == measured(noisy, "weight_norm")[0]
    assert measured(plain, "loss")[0] != measured(noisy, "loss")[0]


def test_a_network_that_diverges_ends_its_cell_and_not_the_experiment(tmp_path: Path) -> None:
    record = run(replace(TINY, lr=1e20, arms=("none", "batch_norm"), out=tmp_path / "a"))
    assert all(cell.has_ended for cell in record.cells)
    ((step, value),) = measured(record.cells[0], "diverged")
    assert step == value and 1 <= step < STEPS
    assert [step for step, _ in measured(record.cells[0], "val_accuracy")] == []


def test_an_interrupted_experiment_resumes_to_the_same_numbers(tmp_path: Path, undisturbed: Record) -> None:
    class Stopping(Recorder):
        def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
            super().advance(name, share, text)
            if len(self.shares) == STEPS + 5:
                raise KeyboardInterrupt

    place = tmp_path / "a"
    display = Stopping()
    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, out=place), display)
    assert display.messages[-1].endswith(f"steadynorm landscape --resume {place}")
    assert [cell.has_ended for cell in read_record(place).cells] == [True, False, False]
    assert same(run(LandscapeConfig(resume=place)), undisturbed)


@pytest.mark.slow
def test_a_killed_experiment_resumes_to_the_same_numbers(tmp_path: Path, undisturbed: Record) -> None:
    place = tmp_path / "a"
    kill(worker, place, undisturbed.resolved["threads"])
    assert [cell.has_ended for cell in read_record(place).cells] == [True, False, False]
    assert same(run(LandscapeConfig(resume=place)), undisturbed)


def test_quick_shortens_what_was_not_set() -> None:
    quick = quickened(LandscapeConfig(quick=True, widths=(8, 8)), landscape.QUICK)
    assert (quick.epochs, quick.widths, quick.probe_every) == (5, (8, 8), 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("bn",)}, "--arms: no normalization is called 'bn'"),
        ({"arms": ()}, "--arms: at least one value"),
        ({"rate_steps": (1.0,)}, "--rate-steps: two or more positive numbers"),
        ({"rate_steps": (1.0, 1.0)}, "--rate-steps: every value may appear once"),
        ({"weight_steps": (0.0, 0.1)}, "--weight-steps: two or more positive numbers"),
        ({"weight_steps": (0.1, float("inf"))}, "--weight-steps: two or more positive numbers"),
        ({"probe_every": 0}, "--probe-every: must be at least 1, got 0"),
        ({"batch_size": 1}, "--batch-size: must be at least 2, got 1"),
        ({"seeds": (-1,)}, "--seeds: must be in"),
        ({"optimizer": "adamw"}, "--optimizer: landscape probes along the gradient, as SGD's steps go"),
        ({"lr": 0.0}, "--lr: a learning rate must be a positive number"),
        ({"epochs": 0}, "--epochs: must be at least 1, got 0"),
    ],
)
def test_a_configuration_that_makes_no_experiment_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    place = tmp_path / "a"
    with pytest.raises(UserError, match=message):
        run(replace(LandscapeConfig(out=place), **changes))
    assert not place.exists()
