"""Time whole forwards of the lab's networks in evaluation: no norm, torch's, ours, and folded into the convolutions.

Question: what does batch norm cost at inference, and does folding give all of it back?

Expected: folded runs as fast as a network without norm, at the same outputs.

Cost: as :mod:`steadynorm.bench.step`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steadynorm.bench.benchmark import Benchmark
from steadynorm.bench.providers import build_network, draw_images, inference
from steadynorm.bench.record import Json
from steadynorm.bench.step import OURS, TORCHS, StepFlags, network_line
from steadynorm.bench.table import show
from steadynorm.bench.timing import make_step_clock, time_providers, total_ms
from steadynorm.lab.machine import choose_precision
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table
from steadynorm.surgery import fold_

__all__ = ["BENCHMARK"]

FOLDED = "folded"


def _plan(config: StepFlags, head: Json, display: Display) -> Sequence[str]:
    head["precision"] = choose_precision(config.precision, torch.device(head["device"]))
    if config.watch:
        raise UserError("--watch: needs training steps. Drop --inference.")
    if not {TORCHS, OURS} & set(config.norms):
        raise UserError("--inference: folds batch norms, so --norms must have torch_batch_norm or batch_norm.")
    return config.networks


def _measure(case: str, config: StepFlags, head: Json) -> Json:
    """Fold torch's network, or ours if torch's is not measured, and time it with all others.

    Folding must keep its tolerance in float32, at any precision of the forwards.
    """
    device = torch.device(head["device"])
    x, _ = draw_images(config.batch, device)
    source = TORCHS if TORCHS in config.norms else OURS
    norms = {norm: norm for norm in config.norms} | {FOLDED: source}
    models = {name: _in_evaluation(build_network(case, norm, device), x) for name, norm in norms.items()}
    change = fold_(models[FOLDED], x)
    providers = {name: inference(model, x, head["precision"]) for name, model in models.items()}
    samples = time_providers(providers, make_step_clock(device), seconds=config.seconds)
    ms = total_ms(samples)
    return {
        "network": case,
        "folded_from": source,
        "folded": len(change.changed),
        "largest_relative_error": change.measured["largest_relative_error"],
        "ms": ms,
        "samples": len(samples[FOLDED]),
        "speedup": ms[source]["median"] / ms[FOLDED]["median"],
        "over_none": {name: each["median"] / ms["none"]["median"] for name, each in ms.items() if "none" in ms},
    }


def _lines(row: Json) -> list[str]:
    """Show medians, ratios to the network without normalization, and the effect of folding."""
    lines = [network_line(row["network"], name, ms, row["over_none"].get(name)) for name, ms in row["ms"].items()]
    lines.append(
        f"{row['network']:10}folding {row['folded']} norms of {row['folded_from']}: {row['speedup']:.2f} times as"
        f" fast, largest error {row['largest_relative_error']:.1e} of the largest output"
    )
    return lines


def _table(record: Json) -> tuple[str, Table]:
    columns = {"one forward of": show("network")}
    columns |= {f"{name}, ms": show(f"ms.{name}.median", ".2f") for name in (*record["config"]["norms"], FOLDED)}
    columns["speed of folded, unfolded = 1"] = show("speedup", ".2f")
    columns["largest error"] = show("largest_relative_error", ".1e")
    what = f"Evaluation, {record['config']['batch']} images, {record['precision']}, channels-last"
    folded = record["networks"][0]["folded_from"] if record["networks"] else ""
    return f"{what}; {folded} folded", Table.of(record["networks"], columns)


@torch.no_grad()
def _in_evaluation(model: nn.Module, x: Tensor) -> nn.Module:
    """Set a network's running statistics by one training forward, and put it into evaluation mode."""
    model.train()(x)
    return model.eval()


BENCHMARK = Benchmark(
    name="inference",
    flags=StepFlags,
    rows="networks",
    command="step",
    serves=lambda config: config.inference,
    plan=_plan,
    measure=_measure,
    lines=_lines,
    table=_table,
)
"""A row has a network's times under ``ms``, and what folding gave and changed."""
