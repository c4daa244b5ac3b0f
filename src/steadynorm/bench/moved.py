"""Benchmarks that are experiments of the lab now: their old records, as records of these."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from steadynorm.bench.record import Json

if TYPE_CHECKING:
    from steadynorm.reporting.records import Record

__all__ = ["MOVED", "moved_record"]

MOVED = ("statistics", "recalibration")
"""Their names as experiments; their old commands, and the records that these wrote, are still accepted."""


def moved_record(old: Json) -> Record:
    """Turn what ``steadynorm bench statistics`` or ``recalibration`` wrote into a record; needs packages of the lab."""
    from steadynorm.reporting.records import Cell, Measurement, Record

    config = dict(old["config"])
    config |= {"batch_size": config["batch"]} | ({"seeds": [config["seed"]]} if "seed" in config else {})
    cells = [
        Cell(
            factors=factors,
            status="finished",
            measurements=tuple(Measurement(subject=on, quantity=of, value=value) for (on, of), value in values.items()),
        )
        for factors, values in (_statistics(old) if old["bench"] == "statistics" else _recalibration(old))
    ]
    head = {name: old[name] for name in ("command", "created", "versions", "machine")}
    resolved = {"device": old["device"], "precision": old.get("precision", "fp32")}
    return Record(experiment=old["bench"], config=config, resolved=resolved, cells=tuple(cells), **head)


Cells = list[tuple[Json, dict[tuple[str, str], float]]]
"""Factors of each cell, and its values by subject and quantity."""


def _statistics(old: Json) -> Cells:
    from steadynorm.lab.experiments.statistics import PARTS, QUANTITIES

    values = {(one["layer"], "channels"): one["channels"] for one in old["layers"]}
    for one, name, (at, part) in itertools.product(old["layers"], QUANTITIES, enumerate(PARTS)):
        values[one["layer"], part + name] = one[name][at]
    return [({"seed": old["config"]["seed"]}, values)]


def _recalibration(old: Json) -> Cells:
    before = {("", name): old[name] / 100 for name in ("original", "wiped")}
    found: Cells = []
    for row, seed in itertools.product(old["rows"], range(old["config"]["draws"])):
        values = {("", name): row[name][seed] for name in ("passes", "standard_error", "seconds")}
        values |= {("", name): row[name][seed] / 100 for name in ("ours", "update_bn")}
        found.append(({"images": row["images"], "seed": seed}, before | values))
    return found
