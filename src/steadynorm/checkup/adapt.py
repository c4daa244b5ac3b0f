"""``steadynorm adapt``: a stream from files, predicted batch by batch, with the gate and without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from steadynorm.adaptation import Adapted, Gate, StoredStatistics
from steadynorm.checkup.adapt_config import AdaptConfig, check_adapt
from steadynorm.checkup.data import Sample, Wanted, load_sample
from steadynorm.checkup.given import in_dtype_of, tried
from steadynorm.deploy.source import Logits, load_source, trained_on
from steadynorm.lab.data import DATASETS, class_folders
from steadynorm.lab.data.images import random_stream
from steadynorm.lab.machine import choose_device
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import atomic_path, write_text
from steadynorm.reporting.numbers import percent
from steadynorm.reporting.progress import Display
from steadynorm.reporting.words import counted

__all__ = ["Adaptation", "Decision", "as_json", "run_adapt", "show_adaptation", "write_adaptation"]

CLEAN, CLEAN_BATCH = 1000, 100
EVERYTHING = 2**40
_SPLIT, _ORDER = 2**64 - 8, 2**64 - 9
BY = {"stored": "stored", "batch": "batch", "ordered": "tracked, in runs"}
"""Decision of the gate -> statistics used to predict a batch."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Result of one batch.

    Args:
        samples: number of samples.
        by: ``stored``, ``batch`` or ``ordered``.
        adapted: accuracy with the gate; None without labels.
        stored: accuracy without the gate; None without labels.
    """

    samples: int
    by: str
    adapted: float | None
    stored: float | None


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Result of a stream.

    Args:
        model: name of the model.
        told: what was read, one sentence each.
        batches: results of the batches, in order.
    """

    model: str
    told: tuple[str, ...]
    batches: tuple[Decision, ...]

    def accuracy(self, name: str) -> float | None:
        """Return the accuracy on all samples, ``adapted`` or ``stored``; None without labels."""
        found = [(getattr(each, name), each.samples) for each in self.batches]
        if any(share is None for share, _ in found):
            return None
        return float(sum(share * samples for share, samples in found) / sum(samples for _, samples in found))


def run_adapt(config: AdaptConfig, display: Display) -> Adaptation:
    """Predict a stream.

    Raises:
        UserError: the stream cannot be read or predicted.
    """
    source, data = check_adapt(config)
    found = load_source(source, weights=config.weights, key=config.weights_key, code=config.code)
    model = found.model.to(choose_device(config.device))
    x, labels, read = _read(config, data, "data", model, display)
    model = _with_logits(model, x[: config.batch_size])
    adapted, x, labels, how = _gate(config, model, x, labels, display)
    told = (*filter(None, (found.weights, read)), *how)
    for line in told:
        display.message(line)
    display.begin("predicting", number=1, of=1)
    batches = tuple(_predicted(config, adapted, model, x, labels, display))
    display.end("predicting")
    if config.save is not None:
        with atomic_path(config.save) as temporary:
            adapted.save(temporary)
    return Adaptation(model=found.name, told=told, batches=batches)


def _read(
    config: AdaptConfig, data: str, name: str, model: nn.Module, display: Display
) -> tuple[Tensor, Tensor | None, str]:
    """Read samples: all in order as a stream, or a random subset for calibration."""
    stream = name == "data"
    wanted = Wanted(
        batch_size=config.batch_size if stream else CLEAN_BATCH,
        number=EVERYTHING if stream else CLEAN // CLEAN_BATCH,
        seed=config.seed,
        mean=config.mean,
        std=config.std,
        input_size=config.input_size,
        data_dir=config.data_dir if data in DATASETS else None,
        columns=config.columns,
        trained=None if config.source is None else trained_on(config.source),
        part="validation" if stream else "train",
        in_order=stream,
    )
    sample = in_dtype_of(model, load_sample(data, wanted, display.message, flag=f"--{name}"))
    tried(model, sample, f"--{name}")
    x = torch.cat([each if isinstance(each, Tensor) else each[0] for each in sample.batches])
    labels = torch.cat([y for _, y in sample.batches]) if sample.classes else None
    told = f"{'Stream' if stream else 'Clean'}: {sample.told}."
    if stream:
        x, labels, how = _in_order(config, data, sample, x, labels)
        told = f"{told} {how}"
    return x, labels, told


def _in_order(
    config: AdaptConfig, data: str, sample: Sample, x: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor | None, str]:
    folders = class_folders.recognises(data) and sample.classes > 0
    if (config.order or ("mixed" if folders else "given")) == "given":
        return x, labels, "In their order."
    order = torch.from_numpy(random_stream(config.seed, _ORDER).permutation(len(x)))
    return x[order], None if labels is None else labels[order], "Shuffled."


def _with_logits(model: nn.Module, x: Tensor) -> nn.Module:
    """Wrap a model that returns its logits in an object or a tuple."""
    device = next((each.device for each in model.parameters()), x.device)
    output = StoredStatistics().predict(model, x.to(device))
    return model if isinstance(output, Tensor) else Logits(model)


def _gate(
    config: AdaptConfig, model: nn.Module, x: Tensor, labels: Tensor | None, display: Display
) -> tuple[Adapted, Tensor, Tensor | None, tuple[str, ...]]:
    """Return the gate, the rest of the stream, and what was done."""
    how: tuple[str, ...] = ()
    try:
        if config.gate is not None:
            return Adapted.load(model, config.gate), x, labels, (f"Gate: {config.gate}.",)
        if config.clean is not None:
            clean, known, told = _read(config, config.clean, "clean", model, display)
            how = (told,)
        elif labels is None:
            raise UserError("--clean: give labelled data that the model is good on; --data have no labels.")
        else:
            order = torch.from_numpy(random_stream(config.seed, _SPLIT).permutation(len(x)))
            held, rest = order[: min(CLEAN, len(x) // 2)], order[min(CLEAN, len(x) // 2) :].sort().values
            clean, known = x[held], labels[held]
            x, labels = x[rest], labels[rest]
            how = (f"Clean: {counted(len(held), 'sample')} of the stream at random, taken for clean; see --clean.",)
        if known is None:
            raise UserError(f"--clean: must have labels, got none in {config.clean}.")
        device = next((each.device for each in model.parameters()), x.device)
        batches = [
            (part.to(device), some.to(device))
            for part, some in zip(torch.split(clean, CLEAN_BATCH), torch.split(known, CLEAN_BATCH), strict=True)
            if len(part) > 1
        ]
        return Adapted(model, Gate.calibrate(model, batches, seed=config.seed)), x, labels, how
    except FileNotFoundError as error:
        raise UserError(f"--gate: {config.gate}: there is no such file.") from error
    except (ValueError, TypeError) as error:
        flag = "--gate" if config.gate is not None else "--clean"
        raise UserError(f"{flag}: {' '.join(str(error).split())}") from error


def _predicted(
    config: AdaptConfig, adapted: Adapted, model: nn.Module, x: Tensor, labels: Tensor | None, display: Display
) -> Iterator[Decision]:
    """Predict batch after batch."""
    parts = list(range(0, len(x), config.batch_size))[: config.batches]
    device = next((each.device for each in model.parameters()), x.device)
    gate = adapted.method
    assert isinstance(gate, Gate)
    for number, at in enumerate(parts, start=1):
        part = x[at : at + config.batch_size].to(device)
        right = None if labels is None else labels[at : at + config.batch_size].to(device)
        output = adapted(part)
        yield Decision(
            samples=len(part),
            by=gate.decision,
            adapted=_share(output, right),
            stored=None if right is None else _share(StoredStatistics().predict(model, part), right),
        )
        display.advance("predicting", number / len(parts))


def _share(output: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None else float((output.argmax(1) == labels).double().mean())


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count:,} batches"


def as_json(found: Adaptation) -> dict[str, Any]:
    """Return the result as plain data."""
    return {
        "model": found.model,
        "told": list(found.told),
        "accuracy": {name: found.accuracy(name) for name in ("adapted", "stored")},
        "batches": [asdict(each) for each in found.batches],
    }


def write_adaptation(paths: Sequence[Path], found: Adaptation) -> None:
    """Write the result as JSON.

    Raises:
        OSError: a file cannot be written.
    """
    for path in paths:
        write_text(path, json.dumps(as_json(found), indent=2, allow_nan=False) + "\n")


def show_adaptation(found: Adaptation, console: Console) -> None:
    """Print a line for each batch, and the overall result."""

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for number, each in enumerate(found.batches, start=1):
        scored = each.adapted is not None and each.stored is not None
        ends = f"  accuracy {percent(each.adapted or 0)}, {percent(each.stored or 0)} without" if scored else ""
        line(f"batch {number:>4}  by {BY[each.by]:<16}{ends}".rstrip())
    adapted, stored = found.accuracy("adapted"), found.accuracy("stored")
    counts = {by: sum(each.by == by for each in found.batches) for by in BY}
    decided = ", ".join(f"{count} by {BY[by]}" for by, count in counts.items() if count)
    line(f"{_batches(len(found.batches))}: {decided}.")
    if adapted is not None and stored is not None:
        line(f"Accuracy {percent(adapted)} with the gate, {percent(stored)} without.")
    for told in found.told:
        line(told)
