"""Wipe the running statistics of a trained network, measure them anew, and see how much accuracy comes back.

Question: from how many training images does recalibration give a checkpoint's accuracy back?

Expected: from 2,000 images to within 0.2 points.

Cost: some three minutes on two cores.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from steadynorm.bench.benchmark import Benchmark, Contents, Flags
from steadynorm.bench.display import Display
from steadynorm.bench.record import Record
from steadynorm.lab.data import Dataset, Images, load_dataset
from steadynorm.lab.data.batches import evaluation_batches
from steadynorm.reporting.failure import UserError
from steadynorm.surgery import recalibrate_
from steadynorm.surgery.sites import batch_norms_of

__all__ = ["Recalibration", "RecalibrationConfig", "Row", "recalibration_lines"]

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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of images; accuracies in percent of the validation images, one for each draw."""

    images: int
    ours: list[float]
    update_bn: list[float]
    passes: list[int]
    standard_error: list[float]
    """Largest of any estimate, in standard deviations of the channel."""
    seconds: list[float]


class Recalibration(Benchmark[RecalibrationConfig, int]):
    """A row has one number of images."""

    name = command = "recalibration"
    summary = "Measure a checkpoint's running statistics anew."
    rows = "rows"
    flags = RecalibrationConfig

    def plan(self, config: RecalibrationConfig, head: Record, display: Display) -> Sequence[int]:
        """Load network and data, and measure the accuracy with and without the original statistics."""
        from steadynorm.lab.checkpoint import load_checkpoint  # needs a package that no other bench does

        device = torch.device(head["device"])
        model = load_checkpoint(config.checkpoint).model.to(device)
        if not batch_norms_of(model):
            raise UserError(f"{config.checkpoint}: its network has no batch norm, so there is nothing to recalibrate.")
        self.dataset = load_dataset(config.data, data_dir=config.data_dir, progress=display.line)
        count = len(self.dataset.train)
        if not 1 < min(config.images) <= max(config.images) <= count:
            raise UserError(f"--images: from 2 to the {count} training images, got {config.images}.")
        self.wiped = _wiped(model)
        head["original"] = _accuracy(model, self.dataset, device)
        head |= {
            "wiped": _accuracy(self.wiped, self.dataset, device),
            "validation": len(self.dataset.validation),
            "within": WITHIN,
        }
        return config.images

    def label(self, case: int) -> str:
        """Name the number."""
        return f"{case} images"

    def measure(self, case: int, config: RecalibrationConfig, head: Record) -> Record:
        """Recalibrate from so many images."""
        row = _measure(self.wiped, self.dataset, case, config, torch.device(head["device"]))
        return dataclasses.asdict(row) | {"original": head["original"]}

    def lines(self, row: Record) -> list[str]:
        """Show accuracies beside the original one."""
        return [_line(row)]

    def closing(self, record: Record) -> list[str]:
        """Name the least number of images that is enough."""
        return recalibration_lines(record)

    def table(self, record: Record) -> Contents:
        """Show each number of images."""
        columns: dict[str, Callable[[Record], str]] = {
            "training images": lambda row: str(row["images"]),
            "recalibrate_, accuracy": lambda row: _range(row["ours"]),
            "torch's update_bn": lambda row: _range(row["update_bn"]),
            "passes": lambda row: str(max(row["passes"])),
            "seconds": lambda row: f"{_mean(row['seconds']):.1f}",
        }
        before = f"Original {record['original']:.2f} %, statistics wiped {record['wiped']:.2f} %"
        what = f"{before}; mean of {record['config']['draws']} draws, lowest to highest"
        return what, record["rows"], columns


def recalibration_lines(record: Record) -> list[str]:
    """Say what the record comes to."""
    enough = [row["images"] for row in record["rows"] if _mean(row["ours"]) >= record["original"] - record["within"]]
    lines = [f"validation accuracy: original {record['original']:.2f} %, statistics wiped {record['wiped']:.2f} %"]
    if enough:
        lines.append(f"within {record['within']} points of the original on average from {min(enough)} images on")
    else:
        lines.append(f"not within {record['within']} points of the original with any of these numbers of images")
    return lines


def _measure(wiped: nn.Module, dataset: Dataset, count: int, config: RecalibrationConfig, device: torch.device) -> Row:
    row = Row(images=count, ours=[], update_bn=[], passes=[], standard_error=[], seconds=[])
    for seed in range(config.draws):
        batches = _draw(dataset, count, config.batch, seed, device)
        model = copy.deepcopy(wiped)
        start = time.perf_counter()
        found = recalibrate_(model, batches).measured
        row.seconds.append(time.perf_counter() - start)
        row.passes.append(int(found["passes"]))
        row.standard_error.append(found["standard_error"])
        row.ours.append(_accuracy(model, dataset, device))
        model = copy.deepcopy(wiped)
        update_bn(batches, model)
        row.update_bn.append(_accuracy(model, dataset, device))
    return row


def _draw(dataset: Dataset, count: int, batch: int, seed: int, device: torch.device) -> list[Tensor]:
    """Draw training images without putting any back."""
    rows = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:count]
    drawn = Images(pixels=dataset.train.pixels[rows], labels=dataset.train.labels[rows])
    return [x for x, _ in evaluation_batches(drawn, dataset=dataset, batch_size=batch, device=device)]


def _wiped(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for site in batch_norms_of(model):
        site.module.reset_running_stats()  # type: ignore[operator]
    return model


@torch.no_grad()
def _accuracy(model: nn.Module, dataset: Dataset, device: torch.device) -> float:
    """Give the percentage of validation images that are classified rightly, in float32."""
    model.eval()
    pairs = evaluation_batches(dataset.validation, dataset=dataset, batch_size=EVALUATION_BATCH, device=device)
    hits = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in pairs)
    return 100 * hits / len(dataset.validation)


def _line(row: Record) -> str:
    ours, torchs = (
        f"{_mean(row[who]):6.2f} % ({_mean(row[who]) - row['original']:+.2f})" for who in ("ours", "update_bn")
    )
    costs = f"{max(row['passes'])} passes, {_mean(row['seconds']):.1f} s"
    return f"{row['images']:6} images: ours {ours}, update_bn {torchs}; {costs}"


def _range(values: Sequence[float]) -> str:
    return f"{_mean(values):.2f} % ({min(values):.2f} to {max(values):.2f})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
