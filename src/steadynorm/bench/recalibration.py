"""Wipe the running statistics of a trained network, measure them anew, and see how much accuracy comes back.

Question: from how many training images does recalibration give a checkpoint's accuracy back?

Expected: from 2,000 images to within 0.2 points.

Cost: some three minutes on two cores.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from steadynorm.bench.benchmark import Benchmark, Flags
from steadynorm.bench.display import Display
from steadynorm.bench.record import Record
from steadynorm.lab.data import Dataset, Images, load_dataset
from steadynorm.lab.data.batches import evaluation_batches
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.report import Table
from steadynorm.surgery import recalibrate_
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["BENCHMARK", "RecalibrationConfig", "recalibration_lines"]

WITHIN = 0.2
"""Points of accuracy that may be missing."""
EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class RecalibrationConfig(Flags):
    """Wipe a checkpoint's running statistics and measure them anew from some training images.

    Beside it torch.optim.swa_utils.update_bn does the same with the same batches.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A .safetensors file in the checkpoints of a run of steadynorm compare."""
    data: Literal["shapes", "cifar10"] = "shapes"
    """What it was trained on. shapes: embedded; cifar10: from --data-dir, else from the Hugging Face hub."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies."""
    images: tuple[int, ...] = (100, 500, 2_000, 10_000)
    """Numbers of training images to measure from."""
    batch: int = 128
    """Images per batch; what is left over is a smaller one."""
    draws: int = 3
    """How often the training images are drawn anew."""


class _Case(NamedTuple):
    images: int
    wiped: nn.Module
    dataset: Dataset


def _plan(config: RecalibrationConfig, head: Record, display: Display) -> Sequence[_Case]:
    """Load network and data, and measure the accuracy with and without the original statistics."""
    from steadynorm.lab.checkpoint import load_checkpoint  # needs a package that no other bench does

    device = torch.device(head["device"])
    model = load_checkpoint(config.checkpoint).model.to(device)
    if not batch_norms_of(model):
        raise UserError(f"{config.checkpoint}: its network has no batch norm, so there is nothing to recalibrate.")
    dataset = load_dataset(config.data, data_dir=config.data_dir, progress=display.message)
    count = len(dataset.train)
    if not 1 < min(config.images) <= max(config.images) <= count:
        raise UserError(f"--images: from 2 to the {count} training images, got {config.images}.")
    wiped = _wiped(model)
    head["original"], head["wiped"] = (_accuracy(each, dataset, device) for each in (model, wiped))
    head |= {"validation": len(dataset.validation), "within": WITHIN}
    return [_Case(images, wiped, dataset) for images in config.images]


def _measure(case: _Case, config: RecalibrationConfig, head: Record) -> Record:
    """Give accuracies in percent of the validation images, passes, standard errors and seconds, one for each draw."""
    device = torch.device(head["device"])
    row: Record = {"images": case.images, "original": head["original"]}
    row |= {key: [] for key in ("ours", "update_bn", "passes", "standard_error", "seconds")}
    for seed in range(config.draws):
        batches = _draw(case.dataset, case.images, config.batch, seed, device)
        model = copy.deepcopy(case.wiped)
        start = time.perf_counter()
        found = recalibrate_(model, batches).measured
        row["seconds"].append(time.perf_counter() - start)
        row["passes"].append(int(found["passes"]))
        row["standard_error"].append(found["standard_error"])
        row["ours"].append(_accuracy(model, case.dataset, device))
        model = copy.deepcopy(case.wiped)
        update_bn(batches, model)
        row["update_bn"].append(_accuracy(model, case.dataset, device))
    return row


def _table(record: Record) -> tuple[str, Table]:
    columns: dict[str, Callable[[Record], str]] = {
        "training images": lambda row: str(row["images"]),
        "recalibrate_, accuracy": lambda row: _range(row["ours"]),
        "torch's update_bn": lambda row: _range(row["update_bn"]),
        "passes": lambda row: str(max(row["passes"])),
        "seconds": lambda row: f"{_mean(row['seconds']):.1f}",
    }
    before = f"Original {record['original']:.2f} %, statistics wiped {record['wiped']:.2f} %"
    what = f"{before}; mean of {record['config']['draws']} draws, lowest to highest"
    return what, Table.of(record["rows"], columns)


def recalibration_lines(record: Record) -> list[str]:
    """Say what the record comes to."""
    enough = [row["images"] for row in record["rows"] if _mean(row["ours"]) >= record["original"] - record["within"]]
    lines = [f"validation accuracy: original {record['original']:.2f} %, statistics wiped {record['wiped']:.2f} %"]
    if enough:
        lines.append(f"within {record['within']} points of the original on average from {min(enough)} images on")
    else:
        lines.append(f"not within {record['within']} points of the original with any of these numbers of images")
    return lines


def _draw(dataset: Dataset, count: int, batch: int, seed: int, device: torch.device) -> list[Tensor]:
    """Draw training images without putting any back."""
    rows = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:count]
    drawn = Images(pixels=dataset.train.pixels[rows], labels=dataset.train.labels[rows])
    return [x for x, _ in evaluation_batches(drawn, dataset=dataset, batch_size=batch, device=device)]


def _wiped(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for named in batch_norms_of(model):
        named.module.reset_running_stats()  # type: ignore[operator]
    return model


@torch.no_grad()
def _accuracy(model: nn.Module, dataset: Dataset, device: torch.device) -> float:
    """Give the percentage of validation images that are classified rightly, in float32."""
    model.eval()
    pairs = evaluation_batches(dataset.validation, dataset=dataset, batch_size=EVALUATION_BATCH, device=device)
    hits = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in pairs)
    return 100 * hits / len(dataset.validation)


def _lines(row: Record) -> list[str]:
    ours, torchs = (
        f"{_mean(row[who]):6.2f} % ({_mean(row[who]) - row['original']:+.2f})" for who in ("ours", "update_bn")
    )
    costs = f"{max(row['passes'])} passes, {_mean(row['seconds']):.1f} s"
    return [f"{row['images']:6} images: ours {ours}, update_bn {torchs}; {costs}"]


def _range(values: Sequence[float]) -> str:
    return f"{_mean(values):.2f} % ({min(values):.2f} to {max(values):.2f})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


BENCHMARK = Benchmark(
    name="recalibration",
    flags=RecalibrationConfig,
    rows="rows",
    plan=_plan,
    label=lambda case: f"{case.images} images",
    measure=_measure,
    lines=_lines,
    closing=recalibration_lines,
    table=_table,
)
"""A row has one number of images."""
