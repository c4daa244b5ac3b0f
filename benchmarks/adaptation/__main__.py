"""Run the benchmark of adaptation and write its record: a line of JSON for each method on each stream."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.adaptation.measure import measured
from benchmarks.adaptation.networks import NETWORKS, Half
from benchmarks.adaptation.summary import kinds_table, networks_table
from steadynorm.adaptation import ADAPTATIONS
from steadynorm.reporting.environment import describe_machine, describe_versions


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Show streams to networks by every method, and count."""

    out: Path = Path("runs/adaptation-bench")
    """Folder for the networks, which a second run takes from there, and for the record."""
    data_dir: Path | None = None
    """Folder of CIFAR-10; without it the Hugging Face hub's is taken."""
    half: Half = "tuning"
    """Networks that methods were designed on, or those that they were not."""
    only: tuple[str, ...] = ()
    """Names of networks; none means all of the half."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Networks of each kind."""
    methods: tuple[str, ...] = tuple(ADAPTATIONS)
    """Of ADAPTATIONS; stored and batch are compared with."""
    record: str = "streams"
    """Name of the record."""
    threads: int = 1
    """Of torch."""


def main(flags: Flags) -> None:
    """Measure, write each row as it comes, and print the tables."""
    unknown = sorted(set(flags.only) - set(NETWORKS)) + sorted(set(flags.methods) - set(ADAPTATIONS))
    if unknown:
        raise SystemExit(f"--only, --methods: there is no {unknown[0]}.")
    methods = tuple(dict.fromkeys(("stored", "batch", *flags.methods)))
    torch.set_num_threads(flags.threads)
    warnings.simplefilter("ignore")
    rows = []
    flags.out.mkdir(parents=True, exist_ok=True)
    with (flags.out / f"{flags.record}.jsonl").open("w") as file:
        head = {"format": 1, "machine": describe_machine(torch.device("cpu")), "versions": describe_versions()}
        file.write(json.dumps(head) + "\n")
        found = measured(
            flags.half,
            flags.seeds,
            methods,
            data_dir=flags.data_dir,
            folder=flags.out / "networks",
            only=flags.only,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
        for row in found:
            rows.append(asdict(row))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    print(kinds_table(rows, methods), networks_table(rows, "gate"), sep="\n\n")


if __name__ == "__main__":
    main(tyro.cli(Flags))
