"""Wipe the running statistics of a trained network, measure them again, and compare the accuracy.

Question: from how many training images on does recalibration restore a network's accuracy?

Expected: from 2,000 images on, at most 0.2 points are lost.

The network is a checkpoint of another experiment, or one for each seed is trained first. Each (images, seed) is a cell:
the seed draws the training images. Its measurements: ``original`` and ``wiped``, the accuracies on the validation
images before; ``ours`` and ``update_bn``, those after recalibration by :func:`steadynorm.recalibrate_` and by torch's
``update_bn`` with the same batches; ``passes``, ``standard_error`` (the largest of any estimate, in standard deviations
of the channel) and ``seconds`` of ours.

Cost: half a minute for each seed on two cores, and the training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from steadynorm.lab.cells import Job, Measure, measure_cells
from steadynorm.lab.checkpoint import Checkpoint, load_checkpoint
from steadynorm.lab.configuration import OneRateConfig, check_experiment, check_split, settings_of
from steadynorm.lab.data import Dataset, take
from steadynorm.lab.data.batches import evaluation_batches
from steadynorm.lab.describe.arms import Arm, Reduction, points_of
from steadynorm.lab.describe.claims import expected, tolerated
from steadynorm.lab.describe.figures import chart
from steadynorm.lab.describe.method import data_sentence, paragraphs, sentences
from steadynorm.lab.evaluation import evaluate
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.networks.given import Shape, run_once
from steadynorm.lab.training import network, train_networks
from steadynorm.lab.trials import called_code
from steadynorm.reporting.chance import Chance, chance_of
from steadynorm.reporting.claims import is_guessing, judge, too_few, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import percent, seconds
from steadynorm.reporting.records import Cell, Factors, Measurement, Record
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import capital, seeds_label
from steadynorm.surgery import recalibrate_
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["EXPERIMENT", "RecalibrationConfig"]

WITHIN = 0.002
"""Largest loss of accuracy, as a share of the validation images."""
ENOUGH = 2_000
"""Number of training images from which on this is expected."""


@dataclass(frozen=True, kw_only=True)
class RecalibrationConfig(OneRateConfig):
    """Wipe a network's running statistics and measure them again from some training images.

    For comparison, torch.optim.swa_utils.update_bn does the same with the same batches.
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """A .safetensors file from the checkpoints of a run on the same data; default: train a network for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed draws other training images, and trains a network if there is no checkpoint."""
    draws: int | None = None
    """Number of seeds from 0, in place of --seeds."""
    images: tuple[int, ...] | None = None
    """Numbers of training images to measure from; default: 100, 500, 2000, 10000, on embedded data to 1500."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("--batch",))] = 128
    """Images that are normalized together, in training and in recalibration; the last batch may be smaller."""
    epochs: int = 8
    milestones: tuple[int, ...] = (6,)

    def by_data(self) -> Mapping[str, Any]:
        """Return the available numbers of images."""
        return {"images": (100, 500, 1_500) if self.data == "shapes" else (100, 500, 2_000, 10_000)}


QUICK: dict[str, Any] = {"widths": (8, 16, 32), "epochs": 6, "milestones": (4,), "batch_size": 32, "lr": 0.02}
QUICK |= {"seeds": (0,), "images": (100, 500)}


def _check(config: RecalibrationConfig) -> None:
    check_experiment(config, ("images",), least={"images": 2} | ({} if config.draws is None else {"draws": 1}))
    check_split(config.batch_size)
    if config.checkpoint is not None and not called_code(config):  # code that a record names is not called
        _read(config, config.checkpoint)


def _read(config: RecalibrationConfig, path: Path) -> Checkpoint:
    """Load the network of a checkpoint; code that it names is called only if ``--network`` names it too.

    Raises:
        UserError: it cannot be read, or has no batch norm.
    """
    found = load_checkpoint(path, code=called_code(config), flag="--network")
    if not batch_norms_of(found.model):
        raise UserError(f"{path}: its network has no batch norm, so there is nothing to recalibrate.")
    return found


def _images(config: RecalibrationConfig) -> tuple[int, ...]:
    assert config.images is not None  # once the data is known
    return config.images


def _seeds(config: RecalibrationConfig) -> Sequence[int]:
    return config.seeds if config.draws is None else range(config.draws)


def _network(config: RecalibrationConfig, seed: int) -> Factors:
    return network(arm="batch_norm", seed=seed, lr=config.lr, epochs=config.epochs)


def _work(task: Task[RecalibrationConfig]) -> None:
    config, seeds = task.config, _seeds(task.config)
    if config.checkpoint is None:
        train_networks(task, [_network(config, seed) for seed in seeds], settings_of(config, task.record))
    measure_cells(points_of(images=_images(config), seed=seeds), _measure, task)


def _check_fits(config: RecalibrationConfig, dataset: Dataset) -> None:
    """Refuse more images than there are, and a checkpoint for other images.

    Raises:
        UserError: its number of classes or channels differs, or it does not accept images of this size.
    """
    count, path = len(dataset.train), config.checkpoint
    if max(_images(config)) > count:
        fitting = [one for one in _images(config) if one <= count] or [count]
        raise UserError(
            f"--images: there are {count:,} training images, got {max(_images(config)):,}. Say, for one, --images "
            f"{' '.join(map(str, fitting))}."
        )
    if path is None:
        return
    found = _read(config, path)
    had, has = (found.classes, found.channels), (len(dataset.classes), dataset.channels)
    if had != has:
        raise UserError(
            f"{path}: must be of a network for {has[0]} classes and {has[1]} channels as the data, got {had[0]} and "
            f"{had[1]}. Give the --data that it was trained on."
        )
    run_once(found.model, Shape(classes=has[0], channels=has[1], image_size=dataset.image_size), str(path))


def _measure(task: Task[RecalibrationConfig]) -> Measure:
    """Make the function that measures a cell; each network is loaded and wiped once."""
    config, dataset = task.config, task.dataset
    settings = replace(settings_of(config, task.record), precision="fp32")

    @cache
    def wiped(seed: int) -> tuple[nn.Module, list[Measurement]]:
        path = config.checkpoint
        model = _read(config, path).model if path else task.trained(_network(config, seed))
        model = model.to(settings.device)
        before = {"original": evaluate(model, dataset.validation, dataset, settings)[1]}
        for named in batch_norms_of(model):
            named.module.reset_running_stats()  # type: ignore[operator]
        before["wiped"] = evaluate(model, dataset.validation, dataset, settings)[1]
        return model, [Measurement(quantity=name, value=value) for name, value in before.items()]

    def measure(job: Job) -> Iterator[Measurement]:
        model, before = wiped(job.factors["seed"])
        yield from before
        batches = _draw(dataset, job.factors["images"], config.batch_size, job.factors["seed"], settings.device)
        ours, torchs = copy.deepcopy(model), copy.deepcopy(model)
        start = time.perf_counter()
        found = recalibrate_(ours, batches).measured
        yield Measurement(quantity="seconds", value=time.perf_counter() - start)
        yield Measurement(quantity="passes", value=found["passes"])
        yield Measurement(quantity="standard_error", value=found["standard_error"])
        update_bn(batches, torchs)
        for name, each in (("ours", ours), ("update_bn", torchs)):
            yield Measurement(quantity=name, value=evaluate(each, dataset.validation, dataset, settings)[1])

    return measure


def _draw(dataset: Dataset, count: int, batch: int, seed: int, device: torch.device) -> list[Tensor]:
    """Draw training images without replacement."""
    chosen = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:count]
    drawn = take(dataset.train, chosen)
    return [x for x, _ in evaluation_batches(drawn, dataset=dataset, batch_size=batch, device=device)]


def describe(record: Record) -> Report:
    """Report from how many images on the accuracy is restored."""
    done = [cell for cell in record.cells if not cell.is_network and cell.status == "finished"]
    counts = sizes_of(record, done)
    original = counts[0]["original"] if counts else None
    chance = chance_of(record) if "classes" in record.resolved else None  # absent from the first records
    within = tolerated(WITHIN, int(record.resolved.get("validation_images", 0)))
    claim = _claim(counts, within)
    judged = unless_guessing(claim, chance, {"the network": original}) if chance else claim
    table = Table.of(
        counts,
        {
            "Training images": lambda one: f"{one.at['images']:,}",
            "Recalibrated": _column("ours"),
            "torch's update_bn": _column("update_bn"),
            "Passes": lambda one: f"{found.high:.0f}" if (found := one["passes"]) else "",
            "Seconds": lambda one: seconds(one.mean("seconds")),
        },
    )
    wiped = spread(cell.last("wiped") for cell in done)
    return Report(
        headline=_headline(counts, within, chance),
        lead=_lead(record, counts, wiped),
        table=table,
        sections=[
            expected(Claims([judged])),
            Section(title="Accuracy by the number of images", short="Accuracy", blocks=[Figures(_figure(done)), table]),
        ],
        method=paragraphs(record, METHOD, data_is=data_sentence(record)),
        finished=bool(done) and all(cell.has_ended for cell in record.cells),
        findings={"within": within, "wiped": wiped, "rows": [{**one.at, **one.spreads} for one in counts]},
    )


def sizes_of(record: Record, done: Sequence[Cell]) -> list[Arm]:
    """Return each measured number of images with its quantities over the seeds."""

    def last(quantity: str) -> Reduction:
        return lambda cell: cell.last(quantity)

    quantities = {name: last(name) for name in ("ours", "update_bn", "passes", "seconds", "original")}
    of = {images: [cell for cell in done if cell.factors["images"] == images] for images in record.config["images"]}
    return [Arm.of(str(images), cells, quantities, at={"images": images}) for images, cells in of.items() if cells]


def _is_enough(one: Arm, within: float) -> bool:
    """Whether the accuracy is restored, on average."""
    ours, original = one["ours"], one["original"]
    return bool(ours and original and ours.mean >= original.mean - within)


def _column(quantity: str) -> Callable[[Arm], Entry]:
    """Write a mean with its range, with more digits because differences are small."""

    def entry(one: Arm) -> Entry:
        found = one[quantity]
        several = f"{100 * found.low:.2f} to {100 * found.high:.2f}" if found and found.n > 1 else ""
        return Entry(text=_accuracy(found), note=several)

    return entry


def _accuracy(found: Spread | None) -> str:
    return percent(found.mean if found else None, digits=2)


def _figure(cells: Sequence[Cell]) -> list[Figure]:
    methods = {"ours": "recalibrate_", "update_bn": "torch's update_bn", "original": "original statistics"}
    rows = [
        {"images": f"{cell.factors['images']:,} images", "method": label, "accuracy": cell.last(quantity)}
        for cell in cells
        for quantity, label in methods.items()
    ]
    return chart(
        "dot_ranges",
        rows,
        name="accuracy",
        title="Validation accuracy after recalibration",
        caption="Dot: mean over the seeds, which draw the training images; line: their range.",
        rows="images",
        x="accuracy",
        percent=True,
        hue="method",
        order=list(methods.values()),
    )


def _headline(counts: Sequence[Arm], within: float, chance: Chance | None) -> str:
    if not counts:
        return "Nothing is measured yet"
    if (original := counts[0]["original"]) and chance and is_guessing(original, chance):
        said = f"The network is not surely better than guessing ({percent(original.low)}): it has little to lose"
        return too_few(chance) or said
    falling = sorted(counts, key=lambda one: one.at["images"], reverse=True)
    enough = [one.at["images"] for one in takewhile(lambda one: _is_enough(one, within), falling)]
    points = f"{100 * within:.2g} points of the original accuracy"
    if not enough:
        return f"Recalibration loses more than {points}"
    return f"From {enough[-1]:,} images on, recalibration loses at most {points}"


def _claim(counts: Sequence[Arm], within: float) -> Claim:
    claim = f"From {ENOUGH:,} images on, at most {100 * within:.2g} points of the original accuracy are lost."
    large = [one for one in counts if one.at["images"] >= ENOUGH]
    if not large:
        return judge(claim, None, f"No number of images from {ENOUGH:,} on is measured.")
    measured = ", ".join(f"{_accuracy(one['ours'])} at {one.at['images']:,}" for one in large)
    return judge(
        claim, all(_is_enough(one, within) for one in large), f"Of {_accuracy(large[0]['original'])}: {measured}."
    )


LEAD = """
{what} on {data}; validation accuracy {original} with its own running statistics, {wiped} with mean 0 and variance 1;
{drawn}.
"""
METHOD = """
{data_is}

Running means are set to 0 and running variances to 1, and measured again from training images that are drawn without
putting any back, in batches of {batch_size}; what is left over is a smaller batch. torch.optim.swa_utils.update_bn gets
the same batches. Accuracy is that on all validation images, in float32.

recalibrate_ passes over the batches until no estimate depends on the layers before it, and weighs every batch by its
count; the number of passes is its own choice.
"""


def _lead(record: Record, counts: Sequence[Arm], wiped: Spread | None) -> str:
    config = record.config
    what = f"the checkpoint {Path(config['checkpoint']).name}" if config["checkpoint"] else f"a {config['network']}"
    original = _accuracy(counts[0]["original"] if counts else None)
    drawn = seeds_label(config["draws"] or len(config["seeds"]))
    return sentences(record, LEAD, what=capital(what), original=original, wiped=_accuracy(wiped), drawn=drawn)


EXPERIMENT = Experiment(
    name="recalibration",
    config=RecalibrationConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    fits=_check_fits,
    trains=lambda config: ("batch_norm",) if config.checkpoint is None else (),
)
