"""Results as lines for a terminal, and a record as a table for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steadynorm.bench.record import Record
from steadynorm.bench.results import CaseResult
from steadynorm.bench.targets import Verdict

__all__ = ["case_row", "header", "markdown", "markdown_rows", "summary_lines", "verdict_line"]

OPS = {"norm": "norm", "norm_relu": "norm, ReLU", "norm_relu_residual": "norm, residual, ReLU"}


def header(*, with_compile: bool) -> str:
    """Name the columns of :func:`case_row`."""
    compiled = f"{'compile':>9}" if with_compile else ""
    return (
        f"{'milliseconds, forward and backward':62}{'MB':>7}{'copy':>9}{'torch':>9}{compiled}{'ours':>9}"
        f"  {'(p20-p80)':21}{'ratio':>7}{'floor':>7}  {'peak MB, torch':>14}{'ours':>7}  backend"
    )


def case_row(result: CaseResult) -> str:
    """Show one case: medians, torch's time over ours, share of the byte floor, peak memory."""
    case, sides = result.case, result.sides
    where = f"{case.op:19}{'x'.join(map(str, case.shape)):18}{case.dtype:10}{case.layout:15}{case.x_bytes / 1e6:7.1f}"
    if not sides:
        wrong = result.agreement
        return f"{where}  disagrees: {wrong.what} is off by {wrong.error:.3g}, allowed {wrong.allowed:.3g}"
    times = "".join(f"{sides[name].ms.median:9.3f}" for name in ("copy", "torch", "compile", "ours") if name in sides)
    spread = f"({sides['ours'].ms.p20:.3f}-{sides['ours'].ms.p80:.3f})"
    peaks = [f"{(sides[name].peak_bytes or 0) / 1e6:.1f}" for name in ("torch", "ours")]
    return (
        f"{where}{times}  {spread:21}{result.ratio:6.2f}x{result.floor_share:7.0%}"
        f"  {peaks[0]:>14}{peaks[1]:>7}  {result.backend.backend}"
    )


def summary_lines(record: Record) -> list[str]:
    """Say in a few lines what a record of kernels comes to."""
    summary = record["summary"]
    lines = []
    for part in summary["whole"]:
        text = f"{part['op']}: {part['cases']} cases, geometric mean {part['ratio']:.2f}x torch"
        if part["ratio_to_compile"] is not None:
            text += f" and {part['ratio_to_compile']:.2f}x torch.compile"
        lines.append(f"{text}, least {_at(part['least_ratio'], '.2f', 'x')}")
        if part["big_cases"]:
            ratio, share = _at(part["least_big_ratio"], ".2f", "x"), _at(part["least_big_share"], ".0%", "")
            lines.append(f"  from {part['big_mb']} MB ({part['big_cases']} cases): least {ratio}")
            lines.append(f"  likewise: least share of the byte floor {share}")
    lines += [verdict_line(Verdict(**verdict)) for verdict in summary["verdicts"]]
    if summary["unsteady"]:
        count, cases = len(summary["unsteady"]), len(record["cases"])
        lines.append(f"unsteady, p80 over twice p20, in {count} of {cases} cases: measure again on a quiet machine")
    lines += [f"disagrees with the reference, no speed: {label}" for label in summary["disagreeing"]]
    return lines


def verdict_line(verdict: Verdict) -> str:
    """Say whether a target is met."""
    goal = "" if verdict.goal is None else f" (goal {verdict.goal:g})"
    state = "met" if verdict.met else "not met"
    return f"target {state:7}  {verdict.op}: {verdict.what} {verdict.found:.2f}, at least {verdict.at_least:g}{goal}"


def markdown(record: Record) -> str:
    """Turn the record of a bench into a table for the README, with a line above it that says what it shows."""
    machine, versions = record["machine"], record["versions"]
    where = machine["accelerator"] or f"{machine['processor']}, {record['threads']} threads"
    place = f"{where}; torch {versions['torch']}, {record['created'][:10]}"
    tables = {
        "inference": _inference_table,
        "kernels": _kernels_table,
        "layers": _layers_table,
        "recalibration": _recalibration_table,
        "statistics": _statistics_table,
        "step": _step_table,
        "workers": _workers_table,
    }
    return tables[record["bench"]](record, place)


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Lay out a head and rows."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)) + "\n"


def _kernels_table(record: Record, place: str) -> str:
    parts = record["summary"]["parts"] + record["summary"]["whole"]
    big = next((f"{part['big_mb']} MB" for part in parts), "")
    compiled = any(part["ratio_to_compile"] is not None for part in parts)
    rows = [
        ["forward and backward of", "input", "cases", "speed, torch eager = 1", "least"]
        + (["torch.compile = 1"] if compiled else [])
        + [f"least from {big}", f"share of the byte floor from {big}, least"]
    ]
    for part in sorted(parts, key=lambda part: part["op"]):
        row = [OPS[part["op"]], _kind(part), str(part["cases"]), f"{part['ratio']:.2f}"]
        row.append(f"{part['least_ratio']['value']:.2f}")
        row += [_number(part["ratio_to_compile"], ".2f")] if compiled else []
        row.append(_number(part["least_big_ratio"] and part["least_big_ratio"]["value"], ".2f"))
        row.append(_number(part["least_big_share"] and part["least_big_share"]["value"], ".0%"))
        rows.append(row)
    return f"Geometric means over the grid; {place}.\n\n{markdown_rows(rows)}"


def _step_table(record: Record, place: str) -> str:
    names = list(record["config"]["norms"])
    rows = [["one training step of", *(f"{name}, ms" for name in names), "ours over torch's: time", "peak memory"]]
    for result in record["networks"]:
        sides = result["norms"]
        row = [result["network"]] + [_number(name in sides and sides[name]["ms"]["median"], ".1f") for name in names]
        for value in ("time", "peak_bytes"):
            row.append(_number(result["ours_over_torch"] and result["ours_over_torch"][value], ".2f"))
        rows.append(row)
    config = record["config"]
    return f"Batch {config['batch']}, {record['precision']}, channels-last; {place}.\n\n{markdown_rows(rows)}"


def _inference_table(record: Record, place: str) -> str:
    names = [*record["config"]["norms"], "folded"]
    rows = [["one forward of", *(f"{name}, ms" for name in names), "speed of folded, unfolded = 1", "largest error"]]
    for one in record["networks"]:
        row = [one["network"], *(_number(one["ms"][name]["median"], ".2f") for name in names)]
        rows.append([*row, _number(one["speedup"], ".2f"), f"{one['largest_relative_error']:.1e}"])
    what = f"Evaluation, {record['config']['batch']} images, {record['precision']}, channels-last"
    folded = record["networks"][0]["folded_from"] if record["networks"] else ""
    return f"{what}; {folded} folded; {place}.\n\n{markdown_rows(rows)}"


def _recalibration_table(record: Record, place: str) -> str:
    rows = [["training images", "recalibrate_, accuracy", "torch's update_bn", "passes", "seconds"]]
    for row in record["rows"]:
        accuracies = [
            f"{np.mean(row[who]):.2f} % ({min(row[who]):.2f} to {max(row[who]):.2f})" for who in ("ours", "update_bn")
        ]
        rows.append([str(row["images"]), *accuracies, str(max(row["passes"])), f"{np.mean(row['seconds']):.1f}"])
    before = f"Original {record['original']:.2f} %, statistics wiped {record['wiped']:.2f} %"
    return f"{before}; mean of {record['config']['draws']} draws, lowest to highest; {place}.\n\n{markdown_rows(rows)}"


def _workers_table(record: Record, place: str) -> str:
    rows = [["workers", "images/s apart", "gradients averaged", "synchronised", "gradients, ms a step", "statistics"]]
    for one in record["costs"]:
        speeds = [f"{one['images_per_second'][way]:,.0f}" for way in ("apart", "gradients", "synchronised")]
        costs = [
            f"{one[name]['median']:.1f} ({one[name]['p20']:.1f} to {one[name]['p80']:.1f})"
            for name in ("gradients_ms", "statistics_ms")
        ]
        rows.append([str(one["workers"]), *speeds, *costs])
    config = record["config"]
    each = f"{config['batch']} images on each worker"
    return f"{config['network']}, {each}, {record['precision']}; median (p20 to p80); {place}.\n\n{markdown_rows(rows)}"


def _layers_table(record: Record, place: str) -> str:
    rows = [["layer", "cases", "time, plain batch norm = 1: median", "most", "at"]]
    for name, one in record["summary"].items():
        rows.append(
            [name, str(one["cases"]), _number(one["median"], ".2f"), _number(one["most"], ".2f"), one["most_at"] or ""]
        )
    sizes = f"inputs from {record['config']['min_mb']:g} to {record['config']['max_mb']:g} MB"
    return f"Norm and ReLU, forward and backward, {sizes}; {place}.\n\n{markdown_rows(rows)}"


def _statistics_table(record: Record, place: str) -> str:
    rows = [
        [
            "layer",
            "channels",
            "best momentum: mean",
            "variance",
            "self-tuned: mean",
            "variance",
            "0.1: mean",
            "variance",
        ]
    ]
    for one in record["layers"]:
        row = [one["layer"], str(one["channels"])]
        for name, form in (("best_momentum", ".2g"), ("self_tuned", ".3f"), ("torchs", ".1f")):
            row += [f"{value:{form}}" for value in one[name]]
        rows.append(row)
    config = record["config"]
    run = f"batch {config['batch']}, rate {config['lr']:g}, {config['steps']} steps"
    what = f"{config['network']} on {config['data']}, {run}"
    return (
        "Squared error of foretelling the next batch's statistics, that of the best fixed momentum being 1; "
        f"{what}; {place}.\n\n{markdown_rows(rows)}"
    )


def _kind(part: dict[str, Any]) -> str:
    return "all" if part["dtype"] is None else f"{part['dtype']}, {part['layout'].replace('_', '-')}"


def _at(extreme: dict[str, Any], form: str, unit: str) -> str:
    return f"{extreme['value']:{form}}{unit} at {extreme['case']}"


def _number(value: float | None, form: str) -> str:
    return f"{value:{form}}" if value else ""
