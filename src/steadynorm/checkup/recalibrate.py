"""``steadynorm recalibrate``: measure running statistics again, and write the weights with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor, nn

from steadynorm.checkup.data import Sample, Wanted, load_sample
from steadynorm.checkup.given import in_dtype_of, tried
from steadynorm.checkup.recalibrate_config import RecalibrateConfig, check_recalibrate
from steadynorm.checkup.saved import save_model
from steadynorm.deploy.source import load_source, trained_on
from steadynorm.doctor.score import logits_of
from steadynorm.lab.data import DATASETS
from steadynorm.lab.machine import choose_device
from steadynorm.lab.weights import STATISTICS
from steadynorm.printable import printable_line
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import write_text
from steadynorm.reporting.numbers import percent
from steadynorm.reporting.progress import Display
from steadynorm.reporting.words import counted
from steadynorm.surgery import recalibrate_, statistics_of
from steadynorm.surgery.batches import evaluating
from steadynorm.surgery.change import Change

__all__ = ["Moved", "Recalibration", "as_json", "run_recalibrate", "show_recalibration", "write_recalibration"]

SCORED = 1000
"""Largest number of images to measure accuracy on."""
SCORED_SHARE = 5
"""Without a validation part, one image in this many is held out for accuracy."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Change of one layer's running statistics.

    Args:
        layer: name of the layer.
        channels: number of its channels.
        mean: distance of the means in standard deviations of the new statistics, root mean square over channels; None
            where an old one is not finite.
        var: factor by which the variance changed, geometric mean over channels; None where an old one is not positive.
    """

    layer: str
    channels: int
    mean: float | None
    var: float | None


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """Result of a recalibration.

    Args:
        model: name of the model.
        told: what was read, one sentence each.
        layers: recalibrated layers, in model order.
        left: layers that were left unchanged, and why, one sentence each.
        measured: batches, samples, passes, standard_error and moved, see
            :func:`steadynorm.surgery.recalibrate_`.
        scored: what accuracy was measured on; empty if it was not measured.
        before: accuracy with the old statistics; None if it was not measured.
        after: accuracy with the new statistics; None if it was not measured.
        file: the written file.
    """

    model: str
    told: tuple[str, ...]
    layers: tuple[Moved, ...]
    left: tuple[str, ...]
    measured: Mapping[str, float]
    scored: str
    before: float | None
    after: float | None
    file: str


def run_recalibrate(config: RecalibrateConfig, display: Display) -> Recalibration:
    """Recalibrate a model's running statistics, and write the model.

    Raises:
        UserError: the model or its data cannot be read, or nothing can be recalibrated.
        OSError: the file cannot be written.
    """
    source, data, save = check_recalibrate(config)
    key, code = config.weights_key, config.code
    found = load_source(source, weights=config.weights, key=key, may_lack=STATISTICS, code=code)
    model = found.model.to(choose_device(config.device))
    if found.weights:
        display.message(found.weights)
    x, held, read, scored = _read(config, data, model, display)
    told = (*filter(None, (found.weights,)), read)
    display.message(read)
    display.begin("measuring", number=1, of=1)
    before = _accuracy(model, held)
    old = statistics_of(model)
    change = _recalibrated(model, x, config.batch_size)
    after = _accuracy(model, held)
    display.end("measuring")
    save_model(model, save, source, single=True)
    return Recalibration(
        model=found.name,
        told=told,
        layers=tuple(_moved(each.name, old, statistics_of(model)) for each in change.changed),
        left=tuple(str(each) for each in change.refused),
        measured=change.measured,
        scored="" if before is None else scored,
        before=before,
        after=after,
        file=str(save),
    )


def _read(
    config: RecalibrateConfig, data: str, model: nn.Module, display: Display
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], str, str]:
    """Return images for the statistics, others with labels for accuracy, and descriptions of both."""
    named = data in DATASETS
    sample = _sample(config, data, config.images + (0 if named else SCORED), "train", model, display)
    x, labels = _joined(sample)
    kept = 0 if named or labels is None else min(SCORED, len(x) // SCORED_SHARE)
    chosen = x[: min(config.images, len(x) - kept)]
    read = f"Statistics: {sample.told}."
    if len(chosen) < len(x):
        read = f"Drawn: {sample.told}. Statistics: of {len(chosen):,} of them."
    if named:
        other = _sample(config, data, SCORED, "validation", model, display)
        held = [each for each in other.batches if not isinstance(each, Tensor)]
        return chosen, held, read, other.told.partition(" in batches")[0]
    if labels is None or not kept:
        return chosen, [], read, ""
    pairs = zip(*(torch.split(each[-kept:], config.batch_size) for each in (x, labels)), strict=True)
    return chosen, list(pairs), read, f"{counted(kept, 'other image')} of them"


def _sample(
    config: RecalibrateConfig,
    data: str,
    count: int,
    part: Literal["train", "validation"],
    model: nn.Module,
    display: Display,
) -> Sample:
    size = min(config.batch_size, count)
    wanted = Wanted(
        batch_size=size,
        number=-(-count // size),
        seed=config.seed,
        mean=config.mean,
        std=config.std,
        input_size=config.input_size,
        data_dir=config.data_dir,
        columns=config.columns,
        trained=None if config.source is None else trained_on(config.source),
        part=part,
    )
    sample = in_dtype_of(model, load_sample(data, wanted, display.message))
    tried(model, sample, "--data")
    return sample


def _joined(sample: Sample) -> tuple[Tensor, Tensor | None]:
    x = torch.cat([each if isinstance(each, Tensor) else each[0] for each in sample.batches])
    return x, torch.cat([each[1] for each in sample.batches]) if sample.classes else None


def _recalibrated(model: nn.Module, x: Tensor, batch_size: int) -> Change:
    """Measure on the model's device.

    Raises:
        UserError: no layer has statistics that can be measured.
    """
    device = next((each.device for each in model.parameters()), x.device)
    try:
        change = recalibrate_(model, [part.to(device) for part in torch.split(x, batch_size)])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--data: {' '.join(str(error).split())}") from error
    if not change.changed:
        raise UserError("the model must have a batch norm with running statistics, got none. Nothing was written.")
    return change


def _accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return the accuracy; None if the model gives no logits for these classes."""
    right = total = 0
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        for x, labels in batches:
            logits = logits_of(model(x.to(device)))
            if logits is None or len(logits) != len(x) or int(labels.max()) >= logits.shape[1]:
                return None
            right += int((logits.argmax(1).cpu() == labels).sum())
            total += len(x)
    return right / total if total else None


def _moved(name: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Moved:
    mean, var = (f"{name}.{kind}" if name else kind for kind in STATISTICS)
    shift = (new[mean] - old[mean]).double() / (new[var].double() + torch.finfo(torch.float32).tiny).sqrt()
    gain = (new[var].double() / old[var].double()).log().mean().exp()
    return Moved(
        layer=name or "(the model)",
        channels=len(new[mean]),
        mean=_finite(float(shift.square().mean().sqrt())),
        var=_finite(float(gain)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_json(found: Recalibration) -> dict[str, Any]:
    """Return the result as plain data."""
    return {
        "model": found.model,
        "told": list(found.told),
        "layers": [asdict(each) for each in found.layers],
        "left": list(found.left),
        "measured": {name: _finite(value) for name, value in found.measured.items()},
        "accuracy": {"on": found.scored or None, "before": found.before, "after": found.after},
        "file": found.file,
    }


def write_recalibration(paths: Sequence[Path], found: Recalibration) -> None:
    """Write the result as JSON.

    Raises:
        OSError: a file cannot be written.
    """
    for path in paths:
        write_text(path, json.dumps(as_json(found), indent=2, allow_nan=False) + "\n")


def show_recalibration(found: Recalibration, console: Console) -> None:
    """Print how far each layer's statistics moved, and the effect on accuracy."""
    table = Table(
        Column("layer", overflow="fold"),
        Column("channels", justify="right"),
        Column("mean moved by", justify="right"),
        Column("variance", justify="right"),
        box=None,
    )
    for each in found.layers:
        moved = "was not finite" if each.mean is None else f"{each.mean:.2g} sd"
        factor = "was not positive" if each.var is None else f"times {each.var:.3g}"
        table.add_row(Text(printable_line(each.layer)), str(each.channels), moved, factor)
    console.print(table)
    for line in _lines(found):
        console.print(Text(printable_line(line)), soft_wrap=not console.is_terminal)


def _lines(found: Recalibration) -> list[str]:
    measured, error = found.measured, _finite(found.measured["standard_error"])
    passes = counted(int(measured["passes"]), "pass") if measured["passes"] == 1 else f"{measured['passes']:.0f} passes"
    known = "" if error is None else f", standard error at most {percent(error)}"
    lines = [f"{counted(len(found.layers), 'layer')} measured on {measured['samples']:,.0f} images in {passes}{known}."]
    lines += [f"Left as it was: {each}" for each in found.left]
    if found.before is not None and found.after is not None:
        lines.append(f"Accuracy {percent(found.before)} before, {percent(found.after)} after, on {found.scored}.")
    else:
        lines.append("Accuracy is not measured: there are no labels of the model's classes.")
    return [*lines, *found.told, f"Written: {found.file}"]
