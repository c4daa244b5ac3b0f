"""Time whole forwards of the lab's networks in evaluation: no norm, torch's, ours, and folded into the convolutions.

Question: what does batch norm cost at inference, and does folding give all of it back?

Expected: folded runs as fast as a network without norm, at the same outputs.

Cost: as :mod:`steadynorm.bench.step`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steadynorm.bench.sides import Mark
from steadynorm.bench.timing import Spread, interleave, make_step_clock, spread
from steadynorm.lab.machine import Precision
from steadynorm.reporting.failure import UserError
from steadynorm.surgery import fold_

__all__ = ["FOLDED", "InferenceResult", "inference_lines", "measure_inference"]

FOLDED = "folded"
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class InferenceResult:
    """All sides of one network."""

    network: str
    folded_from: str
    """Whose network was folded."""
    folded: int
    """How many batch norms are gone."""
    largest_relative_error: float
    """Of the folded network's output in float32, relative to its largest magnitude."""
    ms: dict[str, Spread]
    samples: int
    speedup: float
    """Time of the network that was folded, over that of the folded one."""
    over_none: dict[str, float]
    """Times over that without normalization; empty where that is not measured."""


def measure_inference(
    network: str,
    norms: Sequence[str],
    build: Callable[[str], nn.Module],
    x: Tensor,
    *,
    precision: Precision,
    seconds: float,
) -> InferenceResult:
    """Fold torch's network, or ours where torch's is not asked for, and time it beside all others.

    Args:
        network: its name.
        norms: names of the normalizations.
        build: name -> network, in training mode.
        x: the images.
        precision: of the forwards; folding is held to its tolerance in float32.
        seconds: spent on the rounds.

    Raises:
        UserError: neither torch's batch norm nor ours is among the norms.
    """
    source = next((norm for norm in ("torch_batch_norm", "batch_norm") if norm in norms), None)
    if source is None:
        raise UserError("--inference: --norms must have torch_batch_norm or batch_norm, which is what is folded.")
    models = {norm: _lived_in(build(norm), x) for norm in norms}
    models[FOLDED] = _lived_in(build(source), x)
    change = fold_(models[FOLDED], x)
    runs = {name: _make_forward(model, x, precision) for name, model in models.items()}
    for _ in range(WARM_UP):
        for run in runs.values():
            run(lambda: None)
    samples = interleave(runs, make_step_clock(x.device), seconds=seconds)
    ms = {name: spread([sample.total_ms for sample in samples[name]]) for name in runs}
    return InferenceResult(
        network=network,
        folded_from=source,
        folded=len(change.changed),
        largest_relative_error=change.measured["largest_relative_error"],
        ms=ms,
        samples=len(samples[FOLDED]),
        speedup=ms[source].median / ms[FOLDED].median,
        over_none={name: each.median / ms["none"].median for name, each in ms.items()} if "none" in ms else {},
    )


def inference_lines(result: InferenceResult) -> list[str]:
    """Show one network: medians, times over the one without normalization, what folding gives."""
    lines = []
    for name, ms in result.ms.items():
        over = f"  {result.over_none[name]:5.2f} of none" if result.over_none else ""
        text = f"{ms.median:9.2f} ms ({ms.p20:.2f}-{ms.p80:.2f})"
        lines.append(f"{result.network:10}{name:18}{text:30}{over}")
    lines.append(
        f"{result.network:10}folding {result.folded} norms of {result.folded_from}: {result.speedup:.2f} times as fast,"
        f" largest error {result.largest_relative_error:.1e} of the largest output"
    )
    return lines


@torch.no_grad()
def _lived_in(model: nn.Module, x: Tensor) -> nn.Module:
    """Give a network statistics of its own, by one training forward, and put it into evaluation."""
    model.train()(x)
    return model.eval()


def _make_forward(model: nn.Module, x: Tensor, precision: Precision) -> Callable[[Mark], None]:
    autocast = functools.partial(torch.autocast, x.device.type, torch.bfloat16, enabled=precision == "bf16")

    def run(mark: Mark) -> None:
        mark()
        with torch.inference_mode(), autocast():
            model(x)
        mark()

    return run
