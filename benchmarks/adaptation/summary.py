"""From rows to the two claims, network by network: what is lost at worst, and what is kept where classes are mixed.

``python -m benchmarks.adaptation.summary RECORD`` prints the tables of a record.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Worst", "kept", "kinds_table", "networks_table", "ordered_table", "read", "worst"]

Rows = Sequence[Mapping[str, Any]]
Place = tuple[str, str, str]
"""Network, kind of stream, shift."""
Worst = tuple[float, str]
"""Points, and the stream."""
STORED, BATCH = "stored", "batch"
KINDS = {
    "mixed": "mixed",
    "mixed, batches of 50": "of 50",
    "mixed, batches of 10": "of 10",
    "one by one": "one by one",
    "changing": "changing",
    "class_ordered": "class by class",
    "bursts": "bursts",
    "single_class": "single class",
}
"""Kind of stream -> its column."""


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a record."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def _gains(rows: Rows, method: str) -> dict[Place, list[float]]:
    """Return points won over the stored statistics: network and stream -> one number for each seed."""
    of = {(row["network"], row["kind"], row["shift"], row["seed"], row["method"]): row["accuracy"] for row in rows}
    found: dict[Place, list[float]] = defaultdict(list)
    for (network, kind, shift, seed, name), accuracy in of.items():
        if name == method:
            stored = of[network, kind, shift, seed, STORED]
            found[network, kind, shift].append(100 * (accuracy - stored))
    return found


def worst(rows: Rows, method: str, *, single: bool = False) -> Worst:
    """Return the least gain on any stream, averaged over seeds, or of a single seed; negative if points are lost."""
    gains = _gains(rows, method)
    least = {place: min(each) if single else statistics.fmean(each) for place, each in gains.items()}
    place = min(least, key=least.__getitem__)
    return least[place], f"{KINDS[place[1]]}, {place[2].replace('_', ' ')}"


def kept(rows: Rows, method: str) -> float | None:
    """Return the share of what batch statistics win that a method wins, where mixed streams of batches are corrupted.

    Returns:
        sum of its gains over the sum of theirs, over streams on which theirs are positive; None where there are none.
    """
    theirs, own = _gains(rows, BATCH), _gains(rows, method)
    won = {
        place: statistics.fmean(each)
        for place, each in theirs.items()
        if place[1] == "mixed" and place[2] != "clean" and statistics.fmean(each) > 0
    }
    return sum(statistics.fmean(own[place]) for place in won) / sum(won.values()) if won else None


def networks_table(rows: Rows, method: str) -> str:
    """Return the claims for each network and for all, in Markdown."""
    lines = [
        "| network | family | stored, clean | worst stream, mean of seeds | where | worst single run | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        here = [row for row in rows if row["network"] == name]
        lines.append(_line(name, here[0]["family"], here, method))
    return "\n".join([*lines, _line("**all**", "", rows, method)])


def _line(name: str, family: str, rows: Rows, method: str) -> str:
    (mean, where), (least, _), share = worst(rows, method), worst(rows, method, single=True), kept(rows, method)
    clean = [
        row["accuracy"] for row in rows if (row["kind"], row["shift"], row["method"]) == ("mixed", "clean", STORED)
    ]
    kept_share = "nothing to win" if share is None else f"{share:.0%}"
    return (
        f"| {name} | {family} | {100 * statistics.fmean(clean):.1f} % | {mean:+.1f} | {where} | {least:+.1f} | "
        f"{kept_share} |"
    )


def kinds_table(rows: Rows, methods: Sequence[str]) -> str:
    """Return each method's error for each kind of stream, the mean over networks, shifts and seeds; in Markdown."""
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    head = f"| error | {' | '.join(KINDS[kind] for kind in kinds)} | worst stream | worst run | kept |"
    lines = [head, f"|---|{'---|' * (len(kinds) + 3)}"]
    for method in methods:
        errors = []
        for kind in kinds:
            here = [1 - row["accuracy"] for row in rows if row["method"] == method and row["kind"] == kind]
            errors.append(f"{100 * statistics.fmean(here):.1f}")
        least, single, share = worst(rows, method)[0], worst(rows, method, single=True)[0], kept(rows, method)
        ends = [f"{least:+.1f}", f"{single:+.1f}", "" if share is None else f"{share:.0%}"]
        lines.append(f"| {method} | {' | '.join([*errors, *ends])} |")
    return "\n".join(lines)


def ordered_table(rows: Rows, method: str = "gate") -> str:
    """Return each network's error on streams in which classes come in runs, stored and by a method, in Markdown."""
    kinds = ("class_ordered", "bursts")
    head = " | ".join(f"{KINDS[kind]}: {name}" for kind in kinds for name in (STORED, method))
    lines = [f"| error | {head} |", "|---|---|---|---|---|"]
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = []
        for kind in kinds:
            for name in (STORED, method):
                here = [
                    1 - row["accuracy"]
                    for row in rows
                    if (row["network"], row["kind"], row["method"]) == (network, kind, name)
                ]
                cells.append(f"{100 * statistics.fmean(here):.1f} %")
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = read(Path(sys.argv[1]))
    print(kinds_table(found, list(dict.fromkeys(row["method"] for row in found))))
    print(networks_table(found, "gate"), ordered_table(found), sep="\n\n")
