"""Run the benchmark of the doctor and write its record: a line of JSON for each case."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.doctor.architectures import ARCHITECTURES, Half, Kind
from benchmarks.doctor.measure import as_json, measured
from benchmarks.doctor.summary import failures, table
from benchmarks.doctor.training import Data, data_of
from steadynorm.reporting.environment import describe_machine, describe_versions


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Find, place and repair faults in trained networks, and count."""

    out: Path = Path("runs/doctor-bench")
    """Folder for the networks, which a second run takes from there, and for the record."""
    data_dir: Path | None = None
    """Folder of CIFAR-10; without it the Hugging Face hub's is taken."""
    half: Annotated[tuple[Half, ...], tyro.conf.arg(help="Which halves to measure.")] = ("tuning", "held out")
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="Names of architectures; none means all.")] = ()
    seeds: int = 2
    """Networks of each architecture."""
    threads: int = 1
    """Of torch."""


def main(flags: Flags) -> None:
    """Measure, write each row as it comes, and print the table."""
    unknown = sorted(set(flags.only) - set(ARCHITECTURES))
    if unknown:
        raise SystemExit(f"--only: must name architectures, got {unknown[0]}. They are {', '.join(ARCHITECTURES)}.")
    torch.set_num_threads(flags.threads)
    warnings.simplefilter("ignore")

    @cache
    def data(kind: Kind) -> Data:
        return data_of(kind, flags.data_dir)

    rows = []
    flags.out.mkdir(parents=True, exist_ok=True)
    with (flags.out / "cases.jsonl").open("w") as file:
        file.write(
            json.dumps({"format": 1, "machine": describe_machine(torch.device("cpu")), "versions": describe_versions()})
            + "\n"
        )
        for half in flags.half:
            for row in measured(half, range(flags.seeds), data, flags.out / "networks", flags.only):
                rows.append(as_json(row))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
    print(table({f"{half} half": [row for row in rows if row["half"] == half] for half in flags.half}))
    print(*failures(rows), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Flags))
