"""Time whole training steps of the lab's networks: no norm, torch's, ours.

Question: what does normalization cost in a training step, and how much of that does ours save?

Expected: a step with ours costs less than one with torch's batch norm, and both more than one without.

Cost: about a minute on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.bench.agreement import relative_difference
from steadynorm.bench.benchmark import Benchmark, Flags
from steadynorm.bench.memory import peak_bytes
from steadynorm.bench.providers import build_network, draw_images, train_step
from steadynorm.bench.record import Json
from steadynorm.bench.table import show
from steadynorm.bench.timing import Quantiles, make_step_clock, time_providers, total_ms
from steadynorm.doctor.watch import Watch
from steadynorm.doctor.watch.watch import Policy
from steadynorm.lab.machine import choose_precision
from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table

__all__ = ["BENCHMARK", "StepFlags", "network_line"]

if TYPE_CHECKING:
    Norm = str
else:
    Norm = Literal[tuple(NORMALIZATIONS)]  # the command line shows these

SAME = 1e-3  # relative difference of loss and gradient norm in float32 between torch's batch norm and ours
TORCHS, OURS = "torch_batch_norm", "batch_norm"


@dataclass(frozen=True, kw_only=True)
class StepFlags(Flags):
    """Time whole training steps of the lab's networks: forward, loss, backward, optimizer.

    Providers are interleaved in one process. Ours must first give the loss and gradients of torch's batch norm. --watch
    measures the cost of steadynorm.Watch. --inference times forwards, and folding must first give the same output.
    """

    networks: tuple[Literal["cnn", "resnet20"], ...] = ("cnn", "resnet20")
    """Networks of steadynorm compare, on 32x32 images."""
    norms: tuple[Norm, ...] = ("none", "torch_batch_norm", "batch_norm")
    """Normalizations as steadynorm compare names them; batch_norm is ours."""
    batch: int = 128
    """Images per step."""
    inference: bool = False
    """Time forwards in evaluation mode instead, of the network as it is and with its batch norms folded."""
    watch: bool = False
    """Also time each norm's step under a watch, with either policy."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast if the hardware multiplies bfloat16 matrices."""
    seconds: float = 20.0
    """Seconds for the rounds of a network; there are at least seven rounds."""


def _plan(config: StepFlags, head: Json, display: Display) -> Sequence[str]:
    head["precision"] = choose_precision(config.precision, torch.device(head["device"]))
    return config.networks


def _measure(case: str, config: StepFlags, head: Json) -> Json:
    """Compare ours with torch's batch norm, then time all norms, then measure their memory."""
    device = torch.device(head["device"])
    x, labels = draw_images(config.batch, device)
    models: dict[str, nn.Module] = {norm: build_network(case, norm, device) for norm in config.norms}
    difference = None
    if {TORCHS, OURS} <= set(models):
        difference = relative_difference(*(_loss_and_norm(models[norm], x, labels) for norm in (TORCHS, OURS)))
    agrees = difference is None or difference <= SAME
    row: Json = {
        "network": case,
        "difference": difference,
        "agrees": agrees,
        "norms": {},
        "ours_over_torch": None,
    }
    if not agrees:
        return row
    watches = _watched(case, config, device) if config.watch else {}
    models |= {name: model for name, (model, _) in watches.items()}
    steps = {norm: train_step(model, x, labels, head["precision"]) for norm, model in models.items()}
    samples = time_providers(steps, make_step_clock(device), seconds=config.seconds)
    for _, watch in watches.values():
        watch.stop()
    norms: Json = {
        norm: {"ms": ms, "samples": len(samples[norm]), "peak_bytes": peak_bytes(steps[norm], device)}
        for norm, ms in total_ms(samples).items()
    }
    for one in norms.values():
        one["over_none"] = one["ms"]["median"] / norms["none"]["ms"]["median"] if "none" in norms else None
    for one in watches:
        norms[one]["over_unwatched"] = norms[one]["ms"]["median"] / norms[one.split()[0]]["ms"]["median"]
    if difference is not None:
        row["ours_over_torch"] = {
            "time": norms[OURS]["ms"]["median"] / norms[TORCHS]["ms"]["median"],
            "peak_bytes": norms[OURS]["peak_bytes"] / norms[TORCHS]["peak_bytes"],
        }
    return row | {"norms": norms}


def _watched(case: str, config: StepFlags, device: torch.device) -> dict[str, tuple[nn.Module, Watch]]:
    """Build each network with running statistics again for either policy, and start a watch on it."""
    found = {}
    for norm in config.norms:
        for policy in get_args(Policy) if norm != "none" else ():
            model = build_network(case, norm, device)
            found[f"{norm} {policy}"] = model, Watch(model, policy)
            found[f"{norm} {policy}"][1].start()
    return found


def _lines(row: Json) -> list[str]:
    """Show medians, ratios to the network without normalization, and peak memory."""
    if not row["agrees"]:
        return [f"{row['network']}: disagrees: loss or gradients are off by {row['difference']:.3g} of torch's"]
    lines, width = [], max([18, *(len(norm) + 2 for norm in row["norms"])])
    for norm, step in row["norms"].items():
        line = network_line(row["network"], norm, step["ms"], step["over_none"], width)
        watched = f"  {step['over_unwatched']:.4f} of unwatched" if "over_unwatched" in step else ""
        lines.append(f"{line}  peak {step['peak_bytes'] / 1e6:.1f} MB{watched}")
    if ratios := row["ours_over_torch"]:
        lines.append(
            f"{row['network']:10}ours over torch's: time {ratios['time']:.3f}, peak memory {ratios['peak_bytes']:.3f}"
        )
    return lines


def _table(record: Json) -> tuple[str, Table]:
    config = record["config"]
    columns = {"one training step of": show("network")}
    columns |= {f"{norm}, ms": show(f"norms.{norm}.ms.median", ".1f") for norm in config["norms"]}
    columns["ours over torch's: time"] = show("ours_over_torch.time", ".2f")
    columns["peak memory"] = show("ours_over_torch.peak_bytes", ".2f")
    return f"Batch {config['batch']}, {record['precision']}, channels-last", Table.of(record["networks"], columns)


def network_line(network: str, provider: str, ms: Quantiles, over_none: float | None, width: int = 18) -> str:
    """Show one provider of a network."""
    over = "" if over_none is None else f"  {over_none:5.2f} of none"
    text = f"{ms['median']:9.2f} ms ({ms['p20']:.2f}-{ms['p80']:.2f})"
    return f"{network:10}{provider:{width}}{text:30}{over}"


def _loss_and_norm(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return loss and gradient norm of a first step in float32."""
    loss = F.cross_entropy(model(x), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()


BENCHMARK = Benchmark(
    name="step",
    flags=StepFlags,
    rows="networks",
    serves=lambda config: not config.inference,
    plan=_plan,
    measure=_measure,
    lines=_lines,
    disagreeing=lambda record: [row["network"] for row in record["networks"] if not row["agrees"]],
    table=_table,
)
"""A row has a network's steps under ``norms``, and how far torch's and ours differ."""
