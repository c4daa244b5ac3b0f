"""Time the family's layers alone, forward and backward, and our plain batch norm.

Question: what does a layer of the family cost beyond plain batch norm?

Expected: from 8 MB on at most 1.15 times its time for renorm, gated and frozen batch norm, 1.3 times for ghost batch
norm in chunks of 32.

Cost: about three minutes on two cores.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from steadynorm.bench.agreement import difference_to_float64
from steadynorm.bench.benchmark import Benchmark
from steadynorm.bench.cases import BIG_MB, Case, GridFlags, make_grid
from steadynorm.bench.providers import forward_backward, make_inputs, prepared
from steadynorm.bench.record import Json
from steadynorm.bench.table import show
from steadynorm.bench.timing import cache_bytes, make_clock, time_providers, total_ms
from steadynorm.layers.kinds import FAMILY, Kind
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table

__all__ = ["BENCHMARK", "LayersFlags"]

PLAIN = "batch_norm"
OTHERS = tuple(name for name in FAMILY if name != PLAIN)
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[OTHERS]  # the command line shows these
LIMITS = dict.fromkeys(OTHERS, 1.15) | {"ghost_batch_norm": 1.3}
"""Times of plain batch norm that a layer may take on a CPU, from 8 MB on."""
SAME = {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Largest difference to the layer in float64, over the largest value."""


def _layer(kind: Kind, channels: int) -> nn.Module:
    options = {} if kind.is_frozen else kind.arm(0)  # renorm with its last bounds from the start
    return kind.classes[2](channels, activation="relu", **options)


BUILD: dict[str, Callable[[int], nn.Module]] = {name: partial(_layer, kind) for name, kind in FAMILY.items()}


@dataclass(frozen=True, kw_only=True)
class LayersFlags(GridFlags):
    """Time the family's layers and our plain batch norm: norm and ReLU, forward and backward.

    Each layer is first compared with itself in float64, and shows no speed if they disagree. Providers are interleaved
    in one process. Default: about three minutes on two cores.
    """

    layers: tuple[Name, ...] = OTHERS
    """Layers, as steadynorm compare names them; ghost batch norm takes chunks of 32."""
    batches: tuple[int, ...] = (128,)
    """Batch sizes."""
    min_mb: float = 8.0
    """Skip inputs below this many 10^6 bytes."""
    max_mb: float = 64.0
    """Skip inputs above this many 10^6 bytes."""
    seconds: float = 1.0
    """Seconds for the rounds of a case; there are at least seven rounds."""


def _plan(config: LayersFlags, head: Json, display: Display) -> Sequence[Case]:
    cases, skipped = make_grid(("norm_relu",), config, max_mb=config.max_mb, min_mb=config.min_mb)
    head["skipped"] = [f"{case.label}: {reason}" for case, reason in skipped.items()]
    head["cache_bytes"] = cache_bytes(torch.device(head["device"]))
    return cases


def _measure(case: Case, config: LayersFlags, head: Json) -> Json:
    """Compare every layer with itself in float64, then time those that agree."""
    device = torch.device(head["device"])
    sets = make_inputs(case, device, cache_bytes=head["cache_bytes"])
    names = (PLAIN, *config.layers)
    modules = {name: prepared(BUILD[name](case.shape[1]), device, estimates=True) for name in names}
    differences = {name: difference_to_float64(module, sets[0]) for name, module in modules.items()}
    feed = itertools.cycle(sets)
    agreeing = [name for name in names if differences[name] <= SAME[case.torch_dtype]]
    providers = {name: forward_backward(modules[name], feed) for name in agreeing}
    samples = time_providers(providers, make_clock(device), seconds=config.seconds)
    ms = total_ms(samples)
    layers = {
        name: {
            "difference": differences[name],
            "agrees": name in ms,
            "ms": ms.get(name),
            "over_plain": ms[name]["median"] / ms[PLAIN]["median"] if {name, PLAIN} <= set(ms) else None,
        }
        for name in names
    }
    return {"case": case.label, "x_bytes": case.x_bytes, "layers": layers}


def _lines(row: Json) -> list[str]:
    """Show plain batch norm's time, and the others' over it."""
    line = f"{row['case']:52}{row['x_bytes'] / 1e6:7.1f} MB"
    if plain := row["layers"][PLAIN]["ms"]:
        line += f"{plain['median']:9.3f} ms ({plain['p20']:.3f}-{plain['p80']:.3f})"
    for name, layer in row["layers"].items():
        if not layer["agrees"]:
            line += f"  {name} disagrees: off by {layer['difference']:.3g}"
        elif name != PLAIN and layer["over_plain"] is not None:
            line += f"  {name} {layer['over_plain']:.2f}"
    return [line]


def _summarize(rows: Sequence[Json], head: Json) -> Json:
    """Return each layer's ratios over the cases, and which layers disagree where."""
    layers = [(name, layer, row["case"]) for row in rows for name, layer in row["layers"].items()]
    return {
        "summary": {name: _summary(name, rows, head["device"]) for name in head["config"]["layers"]},
        "disagreeing": [f"{name} on {case}" for name, layer, case in layers if not layer["agrees"]],
    }


def _closing(record: Json) -> list[str]:
    lines = []
    for name, one in record["summary"].items():
        if one["cases"] == 0:
            continue
        limit = "" if one["limit"] is None else f", limit {one['limit']:g} {'met' if one['met'] else 'not met'}"
        lines.append(
            f"{name:18} {one['median']:.2f} of plain batch norm by the median of {one['cases']} cases, "
            f"at most {one['most']:.2f} at {one['most_at']}{limit}"
        )
    return lines + [f"disagrees with float64, no speed: {label}" for label in record["disagreeing"]]


def _table(record: Json) -> tuple[str, Table]:
    config = record["config"]
    what = f"Norm and ReLU, forward and backward, inputs from {config['min_mb']:g} to {config['max_mb']:g} MB"
    columns = {
        "layer": show("layer"),
        "cases": show("cases"),
        "time, plain batch norm = 1: median": show("median", ".2f"),
        "most": show("most", ".2f"),
        "at": show("most_at"),
    }
    return what, Table.of([{"layer": name} | one for name, one in record["summary"].items()], columns)


def _summary(name: str, rows: Sequence[Json], device: str) -> Json:
    """Return median and largest of a layer's ratios, and whether every one from 8 MB on keeps the limit of a CPU."""
    ratios = [(row["layers"][name]["over_plain"], row) for row in rows]
    known = sorted(((ratio, row) for ratio, row in ratios if ratio is not None), key=lambda pair: float(pair[0]))
    limit = LIMITS[name] if device == "cpu" else None
    big = [ratio for ratio, row in known if row["x_bytes"] >= BIG_MB[device] * 1e6]
    return {
        "cases": len(known),
        "median": statistics.median(ratio for ratio, _ in known) if known else None,
        "most": known[-1][0] if known else None,
        "most_at": known[-1][1]["case"] if known else None,
        "limit": limit,
        "met": None if limit is None or not big else max(big) <= limit,
    }


BENCHMARK = Benchmark(
    name="layers",
    flags=LayersFlags,
    rows="cases",
    plan=_plan,
    label=lambda case: case.label,
    measure=_measure,
    lines=_lines,
    summarize=_summarize,
    closing=_closing,
    disagreeing=lambda record: record["disagreeing"],
    table=_table,
)
"""A row has under ``layers`` each layer's difference to float64, its time and that over plain batch norm's."""
