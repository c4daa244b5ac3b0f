"""Train the small sigmoid network of the first figure on batch normalization, with it and without.

Question: is a network of sigmoids right more often, and sooner, when its hidden layers are normalized, and is what
arrives at a sigmoid then distributed more steadily while the network trains?

Expected (Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.1 and figure 1): higher test accuracy; in the plain
network the distribution's mean and variance change much, in the normalized one they hardly do.

The paper's: 28 x 28 binary images, three hidden layers of 100 sigmoids, small Gaussian initial weights, 50,000 steps
on 60 images, normalization between each hidden layer's linear map and its sigmoids. It gives neither the learning
rate nor how small the weights are; see ``docs/classic.md`` for how both were chosen here.

What arrives at a sigmoid is measured over the test images in training mode, as in the paper: in batches of the
training's size, each normalized by its own moments. There its mean and standard deviation are the normalization's bias
and weight by construction. In evaluation mode running statistics have to keep up with the weights, from a beginning
(0 and 1) that is no network's; what shifts there is kept beside it.

A cell (arm, seed) holds

================== ============ ============================================================================
quantity           subject      meaning
================== ============ ============================================================================
test_accuracy      (none)       share in [0, 1] of the test images, in evaluation mode
test_loss          (none)       mean cross-entropy in nats, likewise
train_loss         (none)       the same over the steps since the last measurement, in training mode
p15, p50, p85      unit 0 to 7  percentiles of the input to that sigmoid of the last hidden layer, in training mode
drift, path,       every unit   how far they moved in all of training, see :func:`steadynorm.lab.sigmoids.shifts`
width_ratio
eval_drift, ...    every unit   the same in evaluation mode
diverged           (none)       1 at the last measurement, where the training loss is not finite; no shifts then
================== ============ ============================================================================

Cost: one to four minutes for each arm and seed on one core, as busy as it is; --quick seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.cells import Measure, measure_cells
from steadynorm.lab.configuration import ExperimentConfig, check_at_least, check_experiment, check_lists, check_rates
from steadynorm.lab.data import Images
from steadynorm.lab.data.images import random_stream
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.failure import UserError
from steadynorm.lab.progress import Display
from steadynorm.lab.records import Factor, Measurement
from steadynorm.lab.sigmoids import PERCENTILES, build_network, check_arms, inputs_in_training, percentiles, shifts

__all__ = ["ClassicConfig", "measured_steps", "run"]

SHOWN_UNITS = 8  # have their percentiles kept at every measurement
PARTS = 100  # of training, with a measurement behind each
INK = 128  # pixels from here on are 1, others 0


@dataclass(frozen=True, kw_only=True)
class ClassicConfig(ExperimentConfig):
    """Train the sigmoid network of batch norm's first figure with and without it, and watch what reaches a sigmoid.

    It needs no data: it trains on the digits that come with scikit-learn. For the paper's say
    --data mnist --data-dir DIR.
    """

    data: Literal["digits", "mnist"] = "digits"  # type: ignore[assignment] # none of the other experiments' data
    """digits: 1,797 that come with scikit-learn, enlarged; mnist: from --data-dir."""
    data_dir: Path | None = None
    """Where the four files of MNIST lie: train-images-idx3-ubyte and so on, with or without .gz."""
    precision: Literal["fp32"] = "fp32"
    """The network is too small to gain from less."""
    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare: batch_norm, none, self_tuned_batch_norm, torch_batch_norm, layer_norm."""
    widths: tuple[int, ...] = (100, 100, 100)
    """Sigmoids of each hidden layer."""
    steps: int = 50_000
    """Steps to train."""
    batch_size: int = 60
    """Images in a step."""
    lr: float = 1.0
    """Learning rate of SGD without momentum, the same for every arm."""
    init_std: float = 0.1
    """Standard deviation of the initial weights."""


QUICK: dict[str, Any] = {"steps": 2_000}


def run(config: ClassicConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`."""
    return run_experiment("classic", config, display, quick=QUICK, check=_check, work=_work)


def measured_steps(steps: int) -> list[int]:
    """Choose when to measure: before training, behind each hundredth of it, and within the first after 1, 2, 4, ..."""
    even = {round(steps * part / PARTS) for part in range(PARTS + 1)}
    early = {2**power for power in range(steps.bit_length()) if 2**power < steps / PARTS}
    return sorted(even | early)


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Binary images, float32 of shape (N, pixels), and their labels, int64 of shape (N,)."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> _Split:
        """Give the images of these numbers."""
        return _Split(x=self.x[chosen], labels=self.labels[chosen])


def _binary(images: Images, device: torch.device) -> _Split:
    x = (images.pixels >= INK).flatten(1).float()
    return _Split(x=x.to(device), labels=images.labels.to(device))


def _work(task: Task[ClassicConfig]) -> None:
    config = task.config
    grid: list[dict[str, Factor]] = [{"arm": arm, "seed": seed} for seed in config.seeds for arm in config.arms]
    measure_cells(grid, _measure, task)


def _measure(task: Task[ClassicConfig]) -> Measure:
    """Make what trains and watches the network of a cell."""
    config, device = task.config, torch.device(task.record.resolved["device"])
    train, test = (_binary(images, device) for images in (task.dataset.train, task.dataset.validation))

    def measure(factors: dict[str, Factor], advance: Callable[[float], None]) -> Iterator[Measurement]:
        seed = int(factors["seed"])
        network = build_network(
            str(factors["arm"]),
            inputs=train.x.shape[1],
            widths=config.widths,
            classes=len(task.dataset.classes),
            std=config.init_std,
            seed=seed,
        ).to(device)
        batches = (train.take(chosen) for chosen in _batches(len(train), config.batch_size, seed))
        return _watch(network, batches, test, config, advance)

    return measure


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Give the images of each step, without end: whole batches of a new order in each pass."""
    size = min(size, count)
    for epoch in itertools.count(1):
        order = torch.from_numpy(random_stream(seed, epoch).permutation(count))
        yield from order[: count // size * size].view(-1, size)


def _watch(
    network: nn.Sequential,
    batches: Iterator[_Split],
    test: _Split,
    config: ClassicConfig,
    advance: Callable[[float], None],
) -> Iterator[Measurement]:
    """Train a network, and stop to look at it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr)
    history: list[Tensor] = []
    done = 0
    for step in measured_steps(config.steps):
        if step > 0:
            loss = _train(network, optimizer, itertools.islice(batches, step - done))
            yield Measurement(step=step, quantity="train_loss", value=loss)
            if not math.isfinite(loss):
                yield Measurement(step=step, quantity="diverged", value=1.0)
                return
        network.eval()
        history.append(_arriving(network, test, config.batch_size))
        yield from _judge(network, test, step)
        yield from _shown(history[-1][0], step)
        done = step
        advance(step / config.steps)
    for number, mode in enumerate(("", "eval_")):
        for quantity, values in shifts(torch.stack(history)[:, number]).items():
            for unit, value in enumerate(values.tolist()):
                yield Measurement(subject=f"unit {unit}", step=config.steps, quantity=mode + quantity, value=value)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[_Split]) -> float:
    """Take a step on each batch; return their mean loss."""
    network.train()
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(batch.x), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


@torch.no_grad()
def _arriving(network: nn.Sequential, test: _Split, batch_size: int) -> Tensor:
    """Give the percentiles of what reaches the last sigmoids, in training and in evaluation: shape (2, 3, units)."""
    training = inputs_in_training(network, test.x, batch_size=batch_size)
    return torch.stack([percentiles(training), percentiles(network[:-2](test.x))]).cpu()


@torch.no_grad()
def _judge(network: nn.Sequential, test: _Split, step: int) -> list[Measurement]:
    logits = network(test.x)
    accuracy = (logits.argmax(1) == test.labels).double().mean().item()
    loss = F.cross_entropy(logits, test.labels).item()
    return [
        Measurement(step=step, quantity="test_accuracy", value=accuracy),
        Measurement(step=step, quantity="test_loss", value=loss),
    ]


def _shown(found: Tensor, step: int) -> Iterator[Measurement]:
    for unit, values in enumerate(found.T[:SHOWN_UNITS].tolist()):
        for name, value in zip(PERCENTILES, values, strict=True):
            yield Measurement(subject=f"unit {unit}", step=step, quantity=name, value=value)


def _check(config: ClassicConfig) -> None:
    if (config.data == "mnist") != (config.data_dir is not None):
        raise UserError("--data-dir: belongs to --data mnist, which needs it. Give both or neither.")
    check_arms(config.arms)
    check_lists(config, ("arms",))
    check_experiment(config)
    check_at_least(config, (("steps", 1), ("batch_size", 2)))
    check_rates("--lr", (config.lr,))
    if config.train_images is not None:
        check_at_least(config, (("train_images", 2),))
    if not config.widths or min(config.widths) < 1:
        raise UserError(f"--widths: must be positive numbers, got {' '.join(map(str, config.widths)) or 'none'}.")
    if not 0 < config.init_std < math.inf:
        raise UserError(f"--init-std: must be a positive number, got {config.init_std}.")
