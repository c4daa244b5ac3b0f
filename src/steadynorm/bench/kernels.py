"""Time forward and backward of a normalization alone, ours and torch's own, over a grid of inputs.

Question: how many times as fast as torch's layers is ours, and how near to the least that memory allows?

Expected: a norm with its ReLU at least 3.5 times as fast on a CPU, and at least half of the byte floor for inputs of
8 MB and more; on a GPU twice as fast and 80 % of the floor for big bfloat16 inputs in channels-last.

Cost: the default grid takes about ten minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steadynorm.bench.agreement import check_agreement
from steadynorm.bench.benchmark import Benchmark
from steadynorm.bench.cases import COPIES, Case, GridFlags, Op, make_grid
from steadynorm.bench.memory import peak_bytes, saved_bytes
from steadynorm.bench.providers import copy, forward_backward, make_inputs, our_module, prepared, torch_module
from steadynorm.bench.record import Json
from steadynorm.bench.summary import summarize, summary_lines
from steadynorm.bench.table import show
from steadynorm.bench.timing import Sample, cache_bytes, make_clock, quantiles, time_providers
from steadynorm.ops.dispatch import explain_backend
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table

__all__ = ["BENCHMARK", "KernelsFlags"]

MAX_MB = {"cpu": 128.0, "cuda": 1024.0}
OPS = {"norm": "norm", "norm_relu": "norm, ReLU", "norm_relu_residual": "norm, residual, ReLU"}


@dataclass(frozen=True, kw_only=True)
class KernelsFlags(GridFlags):
    """Time single norm layers, forward and backward: a memory copy, torch's own layers, and ours.

    Each case first compares our results with the float64 reference, and shows no speed if they disagree. Providers are
    interleaved in one process. Default: about ten minutes on two cores.
    """

    op: tuple[Op, ...] = ("norm_relu",)
    """What is timed: the norm only, with a ReLU, or with a residual and a ReLU."""
    max_mb: float | None = None
    """Skip inputs above this many 10^6 bytes; default: 128 on a CPU, 1024 on a GPU."""
    compile: bool = False
    """Time torch.compile of torch's layers as well; needs a C++ compiler on a CPU, and seconds per case."""
    seconds: float = 0.5
    """Seconds for the rounds of a case; there are at least seven rounds."""


def _plan(config: KernelsFlags, head: Json, display: Display) -> Sequence[Case]:
    """Return the grid and the columns of the rows; report what the grid leaves out."""
    max_mb = MAX_MB[head["device"]] if config.max_mb is None else config.max_mb
    cases, skipped = make_grid(config.op, config, max_mb=max_mb)
    head["cache_bytes"] = cache_bytes(torch.device(head["device"]))
    head["skipped"] = [
        {"case": case.label} | dataclasses.asdict(case) | {"reason": reason} for case, reason in skipped.items()
    ]
    for case, reason in skipped.items():
        display.message(f"skipped: {case.label}: {reason}")
    compiled = f"{'compile':>9}" if config.compile else ""
    display.message(
        f"{'milliseconds, forward and backward':62}{'MB':>7}{'copy':>9}{'torch':>9}{compiled}{'ours':>9}"
        f"  {'(p20-p80)':21}{'ratio':>7}{'floor':>7}  {'peak MB, torch':>14}{'ours':>7}  backend"
    )
    return cases


def _measure(case: Case, config: KernelsFlags, head: Json) -> Json:
    """Compare ours with the reference, then time all providers, then measure their memory."""
    if config.compile:
        torch.compiler.reset()  # else torch would compile a new shape for all shapes, which is slower
    device = torch.device(head["device"])
    sets = make_inputs(case, device, cache_bytes=head["cache_bytes"])
    modules = {"torch": prepared(torch_module(case), device)}
    if config.compile:
        modules["compile"] = prepared(torch_module(case), device)
        modules["compile"].compile(dynamic=False)
    modules["ours"] = prepared(our_module(case), device)
    fused = case.op != "norm"
    agreement = check_agreement(modules["ours"], modules["torch"], sets[0], "relu" if fused else None)
    row = (
        {"case": case.label}
        | dataclasses.asdict(case)
        | {"x_bytes": case.x_bytes, "agreement": {"agrees": agreement.agrees} | dataclasses.asdict(agreement)}
        | dataclasses.asdict(explain_backend(sets[0].x, sets[0].residual, fused=fused))
    )
    if not agreement.agrees:
        return row | {"sides": {}}
    feed = itertools.cycle(sets)
    layers = {name: forward_backward(module, feed) for name, module in modules.items()}
    samples = time_providers({"copy": copy(feed)} | layers, make_clock(device), seconds=config.seconds)
    sides = {"copy": _side(samples["copy"], floor_bytes=2 * case.x_bytes)}
    for name, module in modules.items():
        memory = {"peak_bytes": peak_bytes(layers[name], device), "saved": saved_bytes(module, sets[0])}
        sides[name] = _side(samples[name], floor_bytes=case.floor_bytes) | memory
    return row | {"sides": sides} | ratios(case.op, sides)


def _lines(row: Json) -> list[str]:
    """Show medians, torch's time over ours, share of the byte floor, peak memory."""
    shape = "x".join(map(str, row["shape"]))
    start = f"{row['op']:19}{shape:18}{row['dtype']:10}{row['layout']:15}{row['x_bytes'] / 1e6:7.1f}"
    if not row["sides"]:
        wrong = row["agreement"]
        return [f"{start}  disagrees: {wrong['what']} is off by {wrong['error']:.3g}, allowed {wrong['allowed']:.3g}"]
    sides = row["sides"]
    times = "".join(
        f"{sides[name]['ms']['median']:9.3f}" for name in ("copy", "torch", "compile", "ours") if name in sides
    )
    spread = f"({sides['ours']['ms']['p20']:.3f}-{sides['ours']['ms']['p80']:.3f})"
    peaks = [f"{sides[name]['peak_bytes'] / 1e6:.1f}" for name in ("torch", "ours")]
    return [
        f"{start}{times}  {spread:21}{row['ratio']:6.2f}x{row['floor_share']:7.0%}"
        f"  {peaks[0]:>14}{peaks[1]:>7}  {row['backend']}"
    ]


def _table(record: Json) -> tuple[str, Table]:
    summary = record["summary"]
    parts = sorted(summary["parts"] + summary["whole"], key=lambda part: str(part["op"]))
    big = f"{parts[0]['big_mb']} MB" if parts else ""
    columns = {
        "forward and backward of": lambda part: OPS[part["op"]],
        "input": lambda part: f"{part['dtype']}, {part['layout'].replace('_', '-')}" if part["dtype"] else "all",
        "cases": show("cases"),
        "speed, torch eager = 1": show("ratio", ".2f"),
        "least": show("least_ratio.value", ".2f"),
        "torch.compile = 1": show("ratio_to_compile", ".2f"),
        f"least from {big}": show("least_big_ratio.value", ".2f"),
        f"share of the byte floor from {big}, least": show("least_big_share.value", ".0%"),
    }
    if all(part["ratio_to_compile"] is None for part in parts):
        del columns["torch.compile = 1"]
    return "Geometric means over the grid", Table.of(parts, columns)


def ratios(op: Op, sides: Json) -> Json:
    """Return the ratios and conclusions of a case's times.

    Returns:
        torch's time over ours, torch.compile's over ours (None where it was not measured), and the time that the least
        traffic takes at the speed of the copy, as a share of ours.
    """
    ms = {name: side["ms"]["median"] for name, side in sides.items()}
    return {
        "ratio": ms["torch"] / ms["ours"],
        "ratio_to_compile": ms["compile"] / ms["ours"] if "compile" in ms else None,
        "floor_share": COPIES[op] * ms["copy"] / ms["ours"],
    }


def _side(samples: Sequence[Sample], *, floor_bytes: int) -> Json:
    """Return one provider's times: forward and backward together and apart; on a GPU, time on the device.

    ``gb_per_s`` is 10⁹ bytes per second that would be moved if nothing beyond the floor were.
    """
    ms = quantiles([sample.total_ms for sample in samples])
    parts = np.median([sample.parts_ms for sample in samples], axis=0).tolist()
    forward, backward = parts if len(parts) == 2 else (None, None)
    return {
        "ms": ms,
        "forward_ms": forward,
        "backward_ms": backward,
        "host_ms": float(np.median([sample.host_ms for sample in samples])),
        "samples": len(samples),
        "gb_per_s": floor_bytes / ms["median"] / 1e6,
        "peak_bytes": None,
        "saved": None,
    }


BENCHMARK = Benchmark(
    name="kernels",
    flags=KernelsFlags,
    rows="cases",
    plan=_plan,
    label=lambda case: case.label,
    measure=_measure,
    lines=_lines,
    summarize=lambda rows, head: {"summary": summarize(rows, head["device"])},
    closing=lambda record: summary_lines(record["summary"], cases=len(record["cases"])),
    disagreeing=lambda record: record["summary"]["disagreeing"],
    table=_table,
)
"""A row has all of the case, agreement, backend and reason, every provider under ``sides``, and the ratios."""
