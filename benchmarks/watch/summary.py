"""The tables of the record, in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from steadynorm.reporting.report import Figure

__all__ = ["figures_of", "table_of_faulty", "table_of_healthy"]

Row = Mapping[str, Any]


def table_of_healthy(rows: Sequence[Row]) -> str:
    """Count steps and events of each healthy training, and of all together."""
    lines = ["| training | steps | layers | accuracy at the end | events |", "|---|---|---|---|---|"]
    well = [row for row in rows if row["well"]]
    for row in well:
        lines.append(
            f"| {row['name']} | {row['steps']:,} | {row['layers']} | {row['last']:.1f} % | {_events(row) or 'none'} |"
        )
    steps, events = sum(row["steps"] for row in well), sum(len(row["events"]) for row in well)
    rate = f"{1e5 * events / steps:.1f}" if steps else "-"
    lines.append(f"| all | {steps:,} | {sum(row['layers'] for row in well)} | | {events}: {rate} in 100,000 steps |")
    return "\n".join(lines)


def table_of_faulty(rows: Sequence[Row]) -> str:
    """Show accuracies of each faulty training by arm, and how soon the fault was noticed."""
    lines = [
        "| fault | | accuracy at the end | accuracy meanwhile | noticed after | events in a training |",
        "|---|---|---|---|---|---|",
    ]
    faulty = [row for row in rows if not row["well"]]
    for name in dict.fromkeys(row["name"] for row in faulty):
        for arm in ("off", "warn", "revert"):
            chosen = [row for row in faulty if row["name"] == name and row["arm"] == arm]
            if chosen:
                lines.append(_line(name if arm == "off" else "", arm, chosen))
    return "\n".join(lines)


def _line(name: str, arm: str, rows: Sequence[Row]) -> str:
    noticed = [row["noticed"] for row in rows if row["noticed"] is not None]
    steps = "-" if arm == "off" else f"{statistics.median(noticed):g} steps" if noticed else "never"
    if noticed and len(noticed) < len(rows):
        steps += f", {len(noticed)} of {len(rows)}"
    events = "-" if arm == "off" else f"{statistics.mean(len(row['events']) for row in rows):.1f}"
    return f"| {name} | {arm} | {_spread(rows, 'last')} | {_spread(rows, 'since')} | {steps} | {events} |"


def _spread(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _events(row: Row) -> str:
    counts = Counter(event["check"] for event in row["events"] if not event["over"])
    return ", ".join(f"`{check}` {count}" for check, count in counts.items())


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Draw the accuracies of each faulty training, over its steps; dotted where the fault begins, and where it ends."""
    faulty = [row for row in rows if not row["well"]]
    figures = []
    for name in dict.fromkeys(row["name"] for row in faulty):
        chosen = [row for row in faulty if row["name"] == name]
        data = [
            {"step": int(step), "accuracy": accuracy / 100, "watch": row["arm"]}
            for row in chosen
            for step, accuracy in row["accuracies"].items()
        ]
        ends = {row["begins"] for row in chosen} | {row["ends"] for row in chosen}
        figures.append(
            Figure(
                name=f"watch_{'_'.join(name.lower().split())}",
                title=f"Accuracy in evaluation: {name}",
                caption="Mean of the seeds, and their range.",
                kind="lines",
                data=data,
                options={
                    "x": "step",
                    "y": "accuracy",
                    "hue": "watch",
                    "order": ["off", "revert", "warn"],
                    "percent": True,
                    "rules": sorted(end for end in ends if 0 < end < max(row["steps"] for row in chosen)),
                },
            )
        )
    return figures
