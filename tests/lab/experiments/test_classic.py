import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steadynorm.lab.configuration import quickened
from steadynorm.lab.data.images import random_stream
from steadynorm.lab.experiments import classic
from steadynorm.lab.experiments.classic import ClassicConfig, measured_steps
from steadynorm.lab.sigmoids import build_network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Record, read_record
from tests.support.experiments import Recorder, kill, on_tiny_data, tiny_dataset

TINY = ClassicConfig(steps=12, batch_size=16, widths=(6, 5), seeds=(0, 1), lr=0.5, init_std=0.3)
NAMES = ["batch_norm-seed0", "none-seed0", "batch_norm-seed1", "none-seed1"]


class Stopping(Recorder):
    """Is interrupted once so many cells are measured."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def end(self, name: str, text: str = "") -> None:
        super().end(name, text)
        if len(self.ended) == self.cells:
            raise KeyboardInterrupt


class Slow(Recorder):
    """Says when the first cell begins and waits in each; in its second without end: it must be killed."""

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if not self.shares:
            print("begun", flush=True)
        super().advance(name, share, text)
        time.sleep(0.02 if not self.ended else 0 if share < 0.5 else 600)


def worker(how: str, place: str, threads: str) -> None:
    """Run the tiny experiment as a process."""
    torch.set_num_threads(int(threads))
    run(replace(TINY, out=Path(place)) if how == "out" else ClassicConfig(resume=Path(place)), Slow())


def run(config: ClassicConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(classic.EXPERIMENT.run(config, display or Recorder()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(replace(TINY, out=tmp_path_factory.mktemp("runs") / "undisturbed"))


def measured(record: Record) -> list[Cell]:
    return [replace(cell, seconds=None) for cell in record.cells]


def value(cell: Cell, quantity: str, step: int, subject: str = "") -> float:
    (found,) = [
        row.value for row in cell.measurements if (row.quantity, row.step, row.subject) == (quantity, step, subject)
    ]
    return found


def _step(network: torch.nn.Module, *, seed: int, number: int = 1) -> float:
    """Take one of the first steps by hand; return its loss."""
    x, labels = split(validation=False)
    chosen = torch.from_numpy(random_stream(seed, 1).permutation(96)[16 * (number - 1) : 16 * number])
    loss = F.cross_entropy(network(x[chosen]), labels[chosen])
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient
    return loss.item()


def split(validation: bool) -> tuple[torch.Tensor, torch.Tensor]:
    images = tiny_dataset().validation if validation else tiny_dataset().train
    return torch.from_numpy((images.pixels.numpy() > 127).reshape(len(images), -1).astype(np.float32)), images.labels


def test_every_arm_is_measured_once_per_seed(undisturbed: Record) -> None:
    assert [cell.name for cell in undisturbed.cells] == NAMES
    assert all(cell.has_ended for cell in undisturbed.cells)


def test_a_cell_holds_every_quantity_at_its_steps(undisturbed: Record) -> None:
    for cell in undisturbed.cells:
        found: dict[tuple[str, str], list[int]] = {}
        for row in cell.measurements:
            found.setdefault((row.quantity, row.subject), []).append(row.step)
        shown = {(name, f"unit {unit}"): list(range(13)) for name in ("p15", "p50", "p85") for unit in range(5)}
        shifts = {
            (f"{mode}{name}", f"unit {unit}"): [12]
            for mode in ("", "eval_")
            for name in ("drift", "path", "width_ratio")
            for unit in range(5)
        }
        whole = {("test_accuracy", ""): list(range(13)), ("test_loss", ""): list(range(13))}
        assert found == shown | shifts | whole | {("train_loss", ""): list(range(1, 13))}


@pytest.mark.parametrize("arm", ["batch_norm", "none"])
def test_the_first_steps_are_sgd_on_the_first_batches_of_a_seeded_order(undisturbed: Record, arm: str) -> None:
    cell = undisturbed.cells[NAMES.index(f"{arm}-seed1")]
    network = build_network(arm, inputs=3072, widths=(6, 5), classes=10, std=0.3, seed=1)
    test_x, test_labels = split(validation=True)
    loss = _step(network, seed=1)
    with torch.no_grad():
        logits = network.eval()(test_x)
    later = [_step(network.train(), seed=1, number=number) for number in (2, 3)]
    hits = [int(row.argmax()) == label for row, label in zip(logits.numpy(), test_labels.tolist(), strict=True)]
    assert [value(cell, "train_loss", step) for step in (1, 2, 3)] == pytest.approx([loss, *later], rel=1e-5)
    assert value(cell, "test_loss", 1) == pytest.approx(F.cross_entropy(logits, test_labels).item(), rel=1e-5)
    assert value(cell, "test_accuracy", 1) == pytest.approx(sum(hits) / 30)


def test_training_loss_is_the_mean_over_the_steps_since_the_last_measurement(tmp_path: Path) -> None:
    (cell,) = run(replace(TINY, steps=300, seeds=(0,), arms=("none",), out=tmp_path / "a")).cells
    network = build_network("none", inputs=3072, widths=(6, 5), classes=10, std=0.3, seed=0)
    losses = [_step(network, seed=0, number=number) for number in range(1, 7)]
    assert value(cell, "train_loss", 3) == pytest.approx(losses[2], rel=1e-5)
    assert value(cell, "train_loss", 6) == pytest.approx(sum(losses[3:]) / 3, rel=1e-5)


def test_percentiles_are_of_what_reaches_the_last_sigmoids(undisturbed: Record) -> None:
    plain = undisturbed.cells[1]
    network = build_network("none", inputs=3072, widths=(6, 5), classes=10, std=0.3, seed=0)
    weights = [module.weight.detach().numpy().T for module in network if isinstance(module, torch.nn.Linear)]
    x = split(validation=True)[0].numpy()[:16]  # the only whole batch of thirty
    arriving = 1 / (1 + np.exp(-x @ weights[0])) @ weights[1]
    for name, level in (("p15", 15), ("p50", 50), ("p85", 85)):
        found = [value(plain, name, 0, f"unit {unit}") for unit in range(5)]
        np.testing.assert_allclose(found, np.percentile(arriving, level, axis=0), rtol=1e-4)


def test_shifts_are_those_of_the_percentiles(undisturbed: Record) -> None:
    for cell in undisturbed.cells:
        for unit in ("unit 0", "unit 4"):
            low, middle, high = (
                np.array([value(cell, name, step, unit) for step in range(13)]) for name in ("p15", "p50", "p85")
            )
            width = (high - low)[-1]
            assert value(cell, "drift", 12, unit) == pytest.approx(np.abs(middle - middle[-1]).max() / width, rel=1e-4)
            assert value(cell, "path", 12, unit) == pytest.approx(np.abs(np.diff(middle)).sum() / width, rel=1e-4)


def test_shifts_in_evaluation_are_those_of_the_network_in_evaluation_mode(tmp_path: Path) -> None:
    (cell,) = run(replace(TINY, steps=1, seeds=(1,), arms=("batch_norm",), out=tmp_path / "a")).cells
    network = build_network("batch_norm", inputs=3072, widths=(6, 5), classes=10, std=0.3, seed=1)
    test_x = split(validation=True)[0]
    with torch.no_grad():
        before = network.eval()[:-2](test_x)
    _step(network.train(), seed=1)
    with torch.no_grad():
        after = network.eval()[:-2](test_x)
    first, last = (np.percentile(inputs.numpy(), (15, 50, 85), axis=0) for inputs in (before, after))
    drift = np.abs(first[1] - last[1]) / (last[2] - last[0])
    found = [value(cell, "eval_drift", 1, f"unit {unit}") for unit in range(5)]
    np.testing.assert_allclose(found, drift, rtol=1e-3)
    assert not np.allclose([value(cell, "drift", 1, f"unit {unit}") for unit in range(5)], drift, rtol=0.1)


def test_what_is_measured_twice_is_the_same(tmp_path: Path, undisturbed: Record) -> None:
    assert measured(run(replace(TINY, out=tmp_path / "a"))) == measured(undisturbed)


def test_a_resume_skips_measured_cells_and_gives_the_same_numbers(tmp_path: Path, undisturbed: Record) -> None:
    place = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, out=place), Stopping(2))
    assert [cell.has_ended for cell in read_record(place).cells] == [True, True, False, False]
    display = Recorder()
    again = run(ClassicConfig(resume=place), display)
    assert display.begun == ["3/4 batch_norm-seed1", "4/4 none-seed1"]
    assert measured(again) == measured(undisturbed)


@pytest.mark.slow
def test_an_experiment_killed_at_any_moment_resumes_to_the_same_tables(tmp_path: Path, undisturbed: Record) -> None:
    """Killed by SIGKILL twice, in the first or the second cell that each process goes through."""
    place, moments = tmp_path / "a", random.Random(0)
    for how in ("out", "resume"):
        kill(worker, how, place, undisturbed.resolved["threads"], after=moments.uniform(0, 0.6))
    assert not all(cell.has_ended for cell in read_record(place).cells)
    assert measured(run(ClassicConfig(resume=place))) == measured(undisturbed)


def test_a_diverged_network_says_when_and_the_others_go_on(tmp_path: Path) -> None:
    record = run(replace(TINY, seeds=(0,), arms=("none", "batch_norm"), lr=1e38, out=tmp_path / "a"))
    for cell in record.cells:
        assert cell.status == "diverged"
        when = cell.diverged_at_step
        assert max(row.step for row in cell.measurements) == when
        assert not np.isfinite(value(cell, "train_loss", when))
        assert not any(row.quantity == "drift" for row in cell.measurements)


def test_a_batch_larger_than_the_training_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--batch-size: a step of 60 images needs as many, got 5 training images"):
        run(replace(TINY, seeds=(0,), train_images=5, batch_size=60, out=tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_measured_steps_are_hundredths_and_powers_of_two_before_the_first() -> None:
    assert measured_steps(1000)[:9] == [0, 1, 2, 4, 8, 10, 20, 30, 40]
    assert measured_steps(1000)[-2:] == [990, 1000]
    assert measured_steps(3) == [0, 1, 2, 3]
    assert measured_steps(50_000)[8:12] == [128, 256, 500, 1000]


def test_quick_shortens_what_was_not_set() -> None:
    assert quickened(ClassicConfig(quick=True), classic.QUICK).steps == 2_000
    assert quickened(ClassicConfig(quick=True, steps=7), classic.QUICK).steps == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("group_norm",)}, "--arms: no normalization here is called 'group_norm'"),
        ({"arms": ()}, "--arms: at least one value"),
        ({"arms": ("none", "none")}, "--arms: every value may appear once"),
        ({"seeds": ()}, "--seeds: at least one value"),
        ({"steps": 0}, "--steps: must be at least 1, got 0"),
        ({"batch_size": 1}, "--batch-size: must be at least 2, got 1"),
        ({"train_images": 1}, "--train-images: must be at least 2, got 1"),
        ({"lr": 0.0}, "--lr: a learning rate must be a positive number"),
        ({"widths": ()}, "--widths: must be positive numbers, got none"),
        ({"widths": (5, 0)}, "--widths: must be positive numbers, got 5 0"),
        ({"init_std": 0.0}, "--init-std: must be a positive number, got 0.0"),
        ({"init_std": float("nan")}, "--init-std: must be a positive number, got nan"),
        ({"data_dir": Path("x")}, "--data-dir: is read with --data mnist only"),
        ({"quick": True, "data": "mnist", "data_dir": Path("x")}, "--quick: runs on the embedded data"),
    ],
)
def test_a_configuration_that_makes_no_experiment_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    place = tmp_path / "a"
    with pytest.raises(UserError, match=message):
        run(replace(ClassicConfig(out=place), **changes))
    assert not place.exists()
