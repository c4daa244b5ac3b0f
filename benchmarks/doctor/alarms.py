"""How often the doctor warns of a healthy network by chance: ``python -m benchmarks.doctor.alarms``.

The networks of ``python -m benchmarks.doctor`` as they were trained, and batches drawn at random: from 2 to 128
samples, 2 to 8 batches, training or validation data, accuracy or cross-entropy; in training mode too, from 32 samples
on, since smaller batches are a fault there.
"""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.doctor.architectures import ARCHITECTURES, Half, Kind
from benchmarks.doctor.training import Data, data_of, trained
from steadynorm.doctor import Severity, accuracy, diagnose
from steadynorm.reporting.environment import describe_machine, describe_versions

SIZES, NUMBERS, TRAINING = (2, 4, 8, 16, 32, 64, 128), (2, 4, 8), 32


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Diagnose healthy networks on random batches, and count warnings."""

    out: Path = Path("runs/doctor-bench")
    """Folder of the networks, as for the benchmark, and for the record."""
    data_dir: Path | None = None
    """Folder of CIFAR-10; without it the Hugging Face hub's is taken."""
    half: Half = "tuning"
    """Half of the benchmark whose networks are drawn."""
    only: tuple[str, ...] = ()
    """Names of networks, of either half; none means all of one half."""
    seeds: int = 2
    """Networks of each architecture."""
    draws: int = 100
    """Number of draws for each architecture."""
    seed: int = 0
    """Seed of the draws."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One diagnosis: its network, its batches, and the checks that reported a warning or an error."""

    architecture: str
    seed: int
    size: int
    number: int
    part: str
    training: bool
    metric: str
    found: tuple[str, ...]


def main(flags: Flags) -> None:
    """Measure, write each draw as it comes, and print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    flags.out.mkdir(parents=True, exist_ok=True)
    head = {"format": 1, "machine": describe_machine(torch.device("cpu")), "versions": describe_versions()}
    drawn = []
    with (flags.out / "alarms.jsonl").open("w") as file:
        file.write(json.dumps(head) + "\n")
        for draw in draws(flags):
            drawn.append(asdict(draw))
            file.write(json.dumps(drawn[-1]) + "\n")
            file.flush()
    print(table(drawn))


def draws(flags: Flags) -> Iterator[Draw]:
    """Diagnose, by turns over the architectures."""
    chance = random.Random(flags.seed)

    @cache
    def data(kind: Kind) -> Data:
        return data_of(kind, flags.data_dir)

    chosen = [ARCHITECTURES[name] for name in flags.only] or [
        each for each in ARCHITECTURES.values() if each.half == flags.half and each.is_available()
    ]
    for _ in range(flags.draws):
        for each in chosen:
            yield _draw(each.name, chance.randrange(flags.seeds), chance, data(each.kind), flags.out / "networks")


def _draw(name: str, seed: int, chance: random.Random, data: Data, folder: Path) -> Draw:
    size, number = chance.choice(SIZES), chance.choice(NUMBERS)
    part, metric = chance.choice(("train", "validation")), chance.choice(("accuracy", "cross-entropy"))
    training = size >= TRAINING and chance.random() < 0.5
    inputs, labels = getattr(data, part)
    rows = torch.tensor([chance.randrange(len(inputs)) for _ in range(size * number)])
    model = trained(name, seed, data, folder).train(training)
    batches = list(zip(inputs[rows].split(size), labels[rows].split(size), strict=True))
    diagnosis = diagnose(model, batches, metric=accuracy if metric == "accuracy" else None)
    found = sorted({each.check for each in diagnosis if each.severity >= Severity.WARNING})
    return Draw(
        architecture=name,
        seed=seed,
        size=size,
        number=number,
        part=part,
        training=training,
        metric=metric,
        found=tuple(found),
    )


def table(drawn: Sequence[Mapping[str, Any]]) -> str:
    """Count diagnoses and those that warn, by samples in a batch, and name the checks; in Markdown."""
    lines = ["| samples in a batch | diagnoses | with a warning | by |", "|---|---|---|---|"]
    for size in sorted({draw["size"] for draw in drawn}):
        lines.append(_line(str(size), [draw for draw in drawn if draw["size"] == size]))
    return "\n".join([*lines, _line("all", drawn)])


def _line(name: str, drawn: Sequence[Mapping[str, Any]]) -> str:
    checks = Counter(check for draw in drawn for check in draw["found"])
    by = ", ".join(f"`{check}` {number}" for check, number in checks.most_common())
    return f"| {name} | {len(drawn)} | {sum(bool(draw['found']) for draw in drawn)} | {by} |"


if __name__ == "__main__":
    main(tyro.cli(Flags))
