"""Time the family's layers alone, forward and backward, beside our plain batch norm.

Question: what does a layer of the family cost beyond plain batch norm?

Expected: from 8 MB on at most 1.15 times its time for renorm, gated and frozen batch norm, 1.3 times for ghost batch
norm in chunks of 32.

Cost: about three minutes on two cores.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steadynorm.bench.cases import Case, DType, Layout, Network, Skipped, make_grid
from steadynorm.bench.display import Display
from steadynorm.bench.record import Record, begin_record, check_config, keep_record
from steadynorm.bench.sides import Inputs, Mark, forward_backward, make_inputs
from steadynorm.bench.targets import BIG_MB
from steadynorm.bench.timing import Spread, cache_bytes, interleave, make_clock, spread
from steadynorm.lab.machine import choose_device
from steadynorm.layers import BatchNorm2d, BatchRenorm2d, FrozenBatchNorm2d, GatedBatchNorm2d, GhostBatchNorm2d

__all__ = ["LayerResult", "LayersConfig", "layer_lines", "run"]

Name = Literal["batch_renorm", "gated_batch_norm", "ghost_batch_norm", "frozen_batch_norm"]

PLAIN = "batch_norm"
BUILD: dict[str, Callable[[int], nn.Module]] = {
    PLAIN: lambda channels: BatchNorm2d(channels, activation="relu"),
    "batch_renorm": lambda channels: BatchRenorm2d(channels, warmup_steps=0, ramp_steps=0, activation="relu"),
    "gated_batch_norm": lambda channels: GatedBatchNorm2d(channels, activation="relu"),
    "ghost_batch_norm": lambda channels: GhostBatchNorm2d(channels, ghost_batch_size=32, activation="relu"),
    "frozen_batch_norm": lambda channels: FrozenBatchNorm2d(channels, activation="relu"),
}
LIMITS = {"batch_renorm": 1.15, "gated_batch_norm": 1.15, "ghost_batch_norm": 1.3, "frozen_batch_norm": 1.15}
"""Times of plain batch norm that a layer may take on a CPU, from 8 MB on."""
SAME = {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Largest difference to the layer in float64, over the largest value."""
KINK_MARGIN = 0.05  # where y before the ReLU is nearer to 0, rounding may decide what its slope is
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Time the family's layers beside our plain batch norm: norm and ReLU, forward and backward.

    Each is first held to itself in float64, and shows no speed where they disagree. Sides are interleaved in one
    process. Default: about three minutes on two cores.
    """

    layers: tuple[Name, ...] = ("batch_renorm", "gated_batch_norm", "ghost_batch_norm", "frozen_batch_norm")
    """Layers beside plain batch norm, as steadynorm compare names them; ghost batch norm takes chunks of 32."""
    shapes: tuple[Network, ...] = ("cnn", "resnet50")
    """Whose norm inputs: the lab's cnn on 32x32 images, ResNet-50 on 224x224 images."""
    batches: tuple[int, ...] = (128,)
    """Batch sizes."""
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    """Of the input; parameters and statistics are float32, as under autocast."""
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    """Of the input."""
    min_mb: float = 8.0
    """Skip inputs below this many 10^6 bytes."""
    max_mb: float = 64.0
    """Skip inputs above this many 10^6 bytes."""
    seconds: float = 1.0
    """Time spent on the rounds of a case; at least seven rounds are made."""
    threads: int | None = None
    """Threads of all sides; default: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    out: Path | None = None
    """Directory for the record, bench_layers_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """One layer on one case."""

    difference: float
    """Largest difference of result and gradients to the layer in float64, over the largest value."""
    agrees: bool
    ms: Spread | None
    """None where it disagrees."""
    over_plain: float | None
    """Its median over that of plain batch norm."""


def run(config: LayersConfig, display: Display) -> Record:
    """Measure every case; see :func:`steadynorm.bench.kernels.run`."""
    check_config(config)
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    cases, skipped = make_grid(
        ops=("norm_relu",),
        networks=config.shapes,
        batches=config.batches,
        dtypes=config.dtypes,
        layouts=config.layouts,
        max_mb=config.max_mb,
    )
    small = [case for case in cases if case.x_bytes < config.min_mb * 1e6]
    skipped += [Skipped(case=case, reason=f"x is smaller than --min-mb {config.min_mb:g}") for case in small]
    cases = [case for case in cases if case not in small]
    head = begin_record("layers", config, device) | {"cache_bytes": cache_bytes(device)}
    head["skipped"] = [f"{one.case.label}: {one.reason}" for one in skipped]
    results: list[tuple[Case, dict[str, LayerResult]]] = []
    try:
        for number, case in enumerate(cases, start=1):
            display.doing(case.label, number=number, of=len(cases))
            results.append((case, measure_case(case, config.layers, device, seconds=config.seconds)))
            display.line(layer_line(*results[-1]))
    except KeyboardInterrupt:
        _finish(head, config, results, display, complete=False)
        raise
    return _finish(head, config, results, display, complete=True)


def measure_case(case: Case, names: Sequence[str], device: torch.device, *, seconds: float) -> dict[str, LayerResult]:
    """Hold every layer to itself in float64, then time those that agree."""
    inputs = make_inputs(case, device, sets=1 + cache_bytes(device) // case.x_bytes)
    modules = {name: _build(name, case.shape[1], device) for name in (PLAIN, *names)}
    differences = {name: difference(module, inputs[0]) for name, module in modules.items()}
    feed = itertools.cycle(inputs)
    works: dict[str, Callable[[Mark], None]] = {
        name: functools.partial(_work, module, feed)
        for name, module in modules.items()
        if differences[name] <= SAME[case.torch_dtype]
    }
    for _ in range(WARM_UP):
        for work in works.values():
            work(lambda: None)
    samples = interleave(works, make_clock(device), seconds=seconds) if works else {}
    times = {name: spread([sample.total_ms for sample in taken]) for name, taken in samples.items()}
    plain = times.get(PLAIN)
    return {
        name: LayerResult(
            difference=differences[name],
            agrees=name in works,
            ms=times.get(name),
            over_plain=times[name].median / plain.median if name in times and plain is not None else None,
        )
        for name in modules
    }


def difference(module: nn.Module, inputs: Inputs) -> float:
    """Give the largest difference between a layer's training step and its step in float64, over the largest value.

    The gradient that goes in is zero where the slope of the activation hangs on rounding.
    """
    wide = copy.deepcopy(module).double()
    with torch.no_grad():
        dy = inputs.dy * (copy.deepcopy(wide)(inputs.x.double()).abs() > KINK_MARGIN)
    found, expected = (_step(each, inputs.x, dy) for each in (copy.deepcopy(module), wide))
    errors = [
        (ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return float(torch.stack(errors).max())  # NaN is the largest


def _step(module: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Give y and the gradients of input, weight and bias."""
    dtype = next(buffer.dtype for buffer in module.buffers() if buffer.is_floating_point())
    leaf = x.detach().to(dtype if dtype == torch.float64 else x.dtype).requires_grad_()
    y = module(leaf)
    # The gate's confidence is left out: its gradient is a sum that nearly cancels.
    wanted = [
        leaf,
        *(one for name, one in module.named_parameters() if name in ("weight", "bias") and one.requires_grad),
    ]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy.to(y.dtype))]


def layer_line(case: Case, found: dict[str, LayerResult]) -> str:
    """Show one case: plain batch norm's time, and the others' over it."""
    plain = found[PLAIN].ms
    line = f"{case.label:52}{case.x_bytes / 1e6:7.1f} MB"
    line += "" if plain is None else f"{plain.median:9.3f} ms ({plain.p20:.3f}-{plain.p80:.3f})"
    for name, result in found.items():
        if not result.agrees:
            line += f"  {name} disagrees: off by {result.difference:.3g}"
        elif name != PLAIN and result.over_plain is not None:
            line += f"  {name} {result.over_plain:.2f}"
    return line


def layer_lines(record: Record) -> list[str]:
    """Say in a line per layer what a record comes to."""
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


def _build(name: str, channels: int, device: torch.device) -> nn.Module:
    """Build a layer with random parameters, whose running estimates are near those of the inputs."""
    module = BUILD[name](channels).to(device)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for tensor, mean, std in (
            (module.weight, 1.0, 0.3),
            (module.bias, 0.0, 0.3),
            (module.running_mean, 0.3, 0.1),
            (module.running_var, 4.0, 0.3),
        ):
            assert isinstance(tensor, Tensor)
            tensor.copy_(torch.empty(channels).normal_(mean, std, generator=generator))
    return module.train()


def _work(module: nn.Module, feed: Any, mark: Mark) -> None:  # noqa: ANN401 (an endless iterator)
    """Take the next inputs: those that were touched longest ago."""
    forward_backward(module, next(feed), mark)


def _finish(
    head: Record,
    config: LayersConfig,
    results: Sequence[tuple[Case, dict[str, LayerResult]]],
    display: Display,
    *,
    complete: bool,
) -> Record:
    record = head | {
        "complete": complete,
        "summary": {name: _summary(name, results, head["device"]) for name in config.layers},
        "disagreeing": [
            f"{name} on {case.label}" for case, found in results for name, one in found.items() if not one.agrees
        ],
        "cases": [
            {"case": case.label, "x_bytes": case.x_bytes}
            | {"layers": {name: dataclasses.asdict(one) for name, one in found.items()}}
            for case, found in results
        ],
    }
    return keep_record(config.out if results else None, record, display)


def _summary(name: str, results: Sequence[tuple[Case, dict[str, LayerResult]]], device: str) -> dict[str, Any]:
    """Give median and largest of a layer's ratios, and whether every one from 8 MB on keeps the limit of a CPU."""
    ratios = [(found[name].over_plain, case) for case, found in results]
    known = sorted(((ratio, case) for ratio, case in ratios if ratio is not None), key=lambda pair: pair[0])
    limit = LIMITS[name] if device == "cpu" else None
    big = [ratio for ratio, case in known if case.x_bytes >= BIG_MB[device] * 1e6]
    return {
        "cases": len(known),
        "median": known[len(known) // 2][0] if known else None,
        "most": known[-1][0] if known else None,
        "most_at": known[-1][1].label if known else None,
        "limit": limit,
        "met": None if limit is None or not big else max(big) <= limit,
    }
