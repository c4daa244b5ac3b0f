"""Wipe the running statistics of a trained network, measure them anew, and see how much accuracy comes back.

Question: from how many training images does recalibration give a checkpoint's accuracy back?

Expected: from 2,000 images to within 0.2 points.

Cost: some three minutes on two cores.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from steadynorm.bench.display import Display
from steadynorm.bench.record import Record, begin_record, check_config, keep_record
from steadynorm.lab.data import Dataset, Images, load_dataset
from steadynorm.lab.data.batches import evaluation_batches
from steadynorm.lab.machine import choose_device
from steadynorm.reporting.failure import UserError
from steadynorm.surgery import recalibrate_
from steadynorm.surgery.sites import batch_norms_of

__all__ = ["RecalibrationConfig", "Row", "recalibration_lines", "run"]

WITHIN = 0.2
"""Points of accuracy that may be missing."""
EVALUATION_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class RecalibrationConfig:
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    out: Path | None = None
    """Directory for the record, bench_recalibration_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


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


def run(config: RecalibrationConfig, display: Display) -> Record:
    """Measure; see :func:`steadynorm.bench.kernels.run`."""
    from steadynorm.lab.checkpoint import load_checkpoint  # needs a package that no other bench does

    check_config(config)
    device = choose_device(config.device)
    model = load_checkpoint(config.checkpoint).model.to(device)
    if not batch_norms_of(model):
        raise UserError(f"{config.checkpoint}: its network has no batch norm, so there is nothing to recalibrate.")
    dataset = load_dataset(config.data, data_dir=config.data_dir, progress=display.line)
    if not 1 < min(config.images) <= max(config.images) <= len(dataset.train):
        raise UserError(f"--images: from 2 to the {len(dataset.train)} training images, got {config.images}.")
    head = begin_record("recalibration", config, device)
    original = _accuracy(model, dataset, device)
    wiped = _wiped(model)
    head |= {"original": original, "wiped": _accuracy(wiped, dataset, device), "validation": len(dataset.validation)}
    rows: list[Row] = []
    for number, count in enumerate(config.images, start=1):
        display.doing(f"{count} images", number=number, of=len(config.images))
        rows.append(_measure(wiped, dataset, count, config, device))
        display.line(_line(rows[-1], original))
    record = head | {"within": WITHIN, "rows": [dataclasses.asdict(row) for row in rows]}
    return keep_record(config.out, record, display)


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


def _line(row: Row, original: float) -> str:
    ours, torchs = (f"{_mean(each):6.2f} % ({_mean(each) - original:+.2f})" for each in (row.ours, row.update_bn))
    seconds = _mean(row.seconds)
    return f"{row.images:6} images: ours {ours}, update_bn {torchs}; {max(row.passes)} passes, {seconds:.1f} s"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
