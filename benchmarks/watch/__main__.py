"""Measure what a watch says and does: ``python -m benchmarks.watch``.

Question: how often does a watch speak of a training that is well; what does it see of a faulty one, how soon, and what
is won by letting it act?

Cost: about 40 minutes on one core.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
import tyro

from benchmarks.doctor.training import Data
from benchmarks.watch.faulty import FAULTY, Faulty
from benchmarks.watch.run import Arm, run
from benchmarks.watch.summary import figures_of, table_of_faulty, table_of_healthy
from benchmarks.watch.trainings import HEALTHY, Batch, Source, Training, data_from
from steadynorm.reporting.environment import describe_machine, describe_versions
from steadynorm.reporting.figures import draw


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Watch trainings that are well, and faulty ones."""

    out: Path = Path("runs/watch-bench")
    """Folder of the record, watch.jsonl; what it holds already is not measured again."""
    data_dir: Path | None = None
    """Folder of CIFAR-10; without it the Hugging Face hub's is taken."""
    only: tuple[str, ...] = ()
    """Names of trainings; none means all."""
    seeds: int = 3
    """Of each faulty training; those that are well run once."""
    share: float = 1.0
    """Of the steps of those that are well."""


def main(flags: Flags) -> None:
    """Measure, write each training as it ends, and print the tables."""
    torch.set_num_threads(1)
    logging.getLogger("steadynorm.watch").setLevel(logging.CRITICAL)  # events are in the record
    flags.out.mkdir(parents=True, exist_ok=True)
    path = flags.out / "watch.jsonl"
    if not path.exists():
        head = {"format": 1, "machine": describe_machine(torch.device("cpu")), "versions": describe_versions()}
        path.write_text(json.dumps(head) + "\n")
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    done = {(row["name"], row["arm"], row["seed"]) for row in rows}
    with path.open("a") as file:
        for row in measured(flags, done):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(
                f"{row['name']}, {row['arm']}, seed {row['seed']}: {row['last']:.1f} %, {len(row['events'])} events",
                flush=True,
            )
    for figure in figures_of(rows):
        (flags.out / f"{figure.name}.png").write_bytes(draw(figure).png)
    print(table_of_healthy(rows), table_of_faulty(rows), sep="\n\n")


def measured(flags: Flags, done: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
    """Run what is not done."""

    @cache
    def data(source: Source) -> Data:
        return data_from(source, flags.data_dir)

    for seed in range(flags.seeds):
        for faulty in FAULTY:
            for arm in get_args(Arm):
                if _is_due(flags, done, faulty.name, arm, seed):
                    yield _row(faulty, faulty.training, data(faulty.training.source), seed, arm, 1.0)
    for training in HEALTHY:
        if _is_due(flags, done, training.name, "warn", 0):
            yield _row(None, training, data(training.source), 0, "warn", flags.share)


def _is_due(flags: Flags, done: set[tuple[str, str, int]], name: str, arm: str, seed: int) -> bool:
    return (name, arm, seed) not in done and (not flags.only or name in flags.only)


def _row(faulty: Faulty | None, training: Training, data: Data, seed: int, arm: Arm, share: float) -> dict[str, Any]:
    started, steps = time.perf_counter(), int(training.steps * share)
    every, disturb = (max(50, steps // 20), _nothing) if faulty is None else (50, faulty.disturb)
    outcome = run(training, data, seed, arm, steps=steps, every=every, disturb=disturb)
    row = {
        "name": training.name if faulty is None else faulty.name,
        "well": faulty is None,
        "arm": arm,
        "seed": seed,
        "steps": steps * training.accumulate,
        "layers": outcome.layers,
        "accuracies": outcome.accuracies,
        "last": outcome.last,
        "events": [asdict(event) | {"text": event.text} for event in outcome.events],
        "seconds": round(time.perf_counter() - started, 1),
    }
    if faulty is not None:
        row |= {"begins": faulty.begins, "ends": faulty.ends, "since": outcome.mean(faulty.begins, faulty.ends)}
        noticed = [each.step for each in outcome.events if each.check in faulty.noticed and not each.over]
        row["noticed"] = noticed[0] - faulty.begins if noticed else None
    return row


def _nothing(batches: Iterable[Batch]) -> Iterable[Batch]:
    return batches


if __name__ == "__main__":
    main(tyro.cli(Flags))
