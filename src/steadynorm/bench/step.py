"""Time whole training steps of the lab's networks: no norm, torch's, ours.

Question: what does normalization cost in a training step, and how much of that does ours save?

Expected: a step with ours costs less than one with torch's batch norm, and both more than one without.

Cost: about a minute on two cores.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.bench.display import Display
from steadynorm.bench.inference import InferenceResult, inference_lines, measure_inference
from steadynorm.bench.memory import peak_bytes
from steadynorm.bench.record import Record, begin_record, check_config, keep_record
from steadynorm.bench.sides import Mark
from steadynorm.bench.timing import Spread, interleave, make_step_clock, spread
from steadynorm.lab.machine import Precision, choose_device, choose_precision
from steadynorm.lab.networks import build_network

__all__ = ["NetworkResult", "StepConfig", "measure_network", "run"]

Norm = Literal[
    "none",
    "torch_batch_norm",
    "batch_norm",
    "self_tuned_batch_norm",
    "several_decays",
    "sync_batch_norm",
    "frozen_batch_norm",
    "batch_renorm",
    "gated_batch_norm",
    "ghost_batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
]

DEPTH, WIDTHS = 6, (32, 64, 128)  # of the cnn, as compare has them
CLASSES = 10
LEARNING_RATE = 1e-4  # small, so that steps on noise do not run into infinities, whose arithmetic takes another time
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
SAME = 1e-3  # relative difference of loss and gradient norm in float32 between torch's batch norm and ours
COMPARED = ("torch_batch_norm", "batch_norm")
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Time whole training steps of the lab's networks: forward, loss, backward, optimizer.

    Sides are interleaved in one process. First ours is held to torch's batch norm: same loss and gradients.
    With --inference forwards are timed, and that folding has not changed the output is seen first.
    """

    networks: tuple[Literal["cnn", "resnet20"], ...] = ("cnn", "resnet20")
    """Networks of steadynorm compare, on 32x32 images."""
    norms: tuple[Norm, ...] = ("none", "torch_batch_norm", "batch_norm")
    """Normalizations as steadynorm compare names them; batch_norm is ours."""
    batch: int = 128
    """Images per step."""
    inference: bool = False
    """Time forwards in evaluation instead, those of the network with its batch norms folded away beside them."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware multiplies bfloat16 matrices."""
    seconds: float = 20.0
    """Time spent on the rounds of a network; at least seven rounds are made."""
    threads: int | None = None
    """Threads of all sides; default: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    out: Path | None = None
    """Directory for the record, bench_step_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The steps of one network with one normalization."""

    ms: Spread
    samples: int
    peak_bytes: int
    """Above weights, gradients and optimizer state."""
    over_none: float | None
    """Its median over that without normalization; None where that is not measured."""


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """All normalizations of one network."""

    network: str
    difference: float | None
    """Largest relative difference of loss and gradient norm between torch's and ours; None where one is missing."""
    agrees: bool
    norms: dict[str, StepResult]
    """Empty where torch's and ours disagree."""
    ours_over_torch: dict[str, float] | None
    """``time`` and ``peak_bytes`` of ours over those of torch's batch norm."""


def run(config: StepConfig, display: Display) -> Record:
    """Measure every network; see :func:`steadynorm.bench.kernels.run`."""
    check_config(config)
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    precision = choose_precision(config.precision, device)
    head = begin_record("step", config, device) | {"precision": precision}
    if config.inference:
        head["bench"] = "inference"
    results: list[NetworkResult | InferenceResult] = []
    try:
        for number, network in enumerate(config.networks, start=1):
            display.doing(network, number=number, of=len(config.networks))
            if config.inference:
                inferred = _measure_inference(network, config, device, precision)
                results.append(inferred)
                lines = inference_lines(inferred)
            else:
                measured = measure_network(network, config, device, precision)
                results.append(measured)
                lines = network_lines(measured)
            for line in lines:
                display.line(line)
    except KeyboardInterrupt:
        _finish(head, config, results, display, complete=False)
        raise
    return _finish(head, config, results, display, complete=True)


def measure_network(network: str, config: StepConfig, device: torch.device, precision: Precision) -> NetworkResult:
    """Hold ours to torch's batch norm, then time all norms, then look at their memory."""
    x, labels = _draw_batch(config.batch, device)
    difference = None
    if set(COMPARED) <= set(config.norms):
        difference = _difference(*(_measures(_build(network, n, device), x, labels) for n in COMPARED))
    agrees = difference is None or difference <= SAME
    if not agrees:
        return NetworkResult(network=network, difference=difference, agrees=False, norms={}, ours_over_torch=None)
    steps: dict[str, Callable[[Mark], None]] = {}
    for norm in config.norms:
        steps[norm] = _make_step(_build(network, norm, device), x, labels, precision)
    for _ in range(WARM_UP):
        for step in steps.values():
            step(lambda: None)
    samples = interleave(steps, make_step_clock(device), seconds=config.seconds)
    times = {norm: spread([sample.total_ms for sample in samples[norm]]) for norm in steps}
    peaks = {norm: peak_bytes(functools.partial(step, lambda: None), device) for norm, step in steps.items()}
    ours_over_torch = None
    if difference is not None:
        native, ours = COMPARED
        ours_over_torch = {
            "time": times[ours].median / times[native].median,
            "peak_bytes": peaks[ours] / peaks[native],
        }
    return NetworkResult(
        network=network,
        difference=difference,
        agrees=True,
        norms={
            norm: StepResult(
                ms=times[norm],
                samples=len(samples[norm]),
                peak_bytes=peaks[norm],
                over_none=times[norm].median / times["none"].median if "none" in times else None,
            )
            for norm in steps
        },
        ours_over_torch=ours_over_torch,
    )


def _measure_inference(network: str, config: StepConfig, device: torch.device, precision: Precision) -> InferenceResult:
    x, _ = _draw_batch(config.batch, device)
    build = functools.partial(_build, network, device=device)
    return measure_inference(network, config.norms, build, x, precision=precision, seconds=config.seconds)


def network_lines(result: NetworkResult) -> list[str]:
    """Show one network: medians, times over the one without normalization, peak memory."""
    if not result.agrees:
        return [f"{result.network}: disagrees: loss or gradients are off by {result.difference:.3g} of torch's"]
    lines = []
    for norm, step in result.norms.items():
        over = "" if step.over_none is None else f"  {step.over_none:5.2f} of none"
        ms = f"{step.ms.median:9.2f} ms ({step.ms.p20:.2f}-{step.ms.p80:.2f})"
        lines.append(f"{result.network:10}{norm:18}{ms:30}{over}  peak {step.peak_bytes / 1e6:.1f} MB")
    if result.ours_over_torch is not None:
        lines.append(
            f"{result.network:10}ours over torch's: time {result.ours_over_torch['time']:.3f},"
            f" peak memory {result.ours_over_torch['peak_bytes']:.3f}"
        )
    return lines


def _finish(
    head: Record,
    config: StepConfig,
    results: Sequence[NetworkResult | InferenceResult],
    display: Display,
    *,
    complete: bool,
) -> Record:
    networks = [dataclasses.asdict(result) for result in results]
    return keep_record(config.out if results else None, head | {"complete": complete, "networks": networks}, display)


def _draw_batch(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return x.to(device), torch.randint(CLASSES, (count,), generator=generator).to(device)


def _build(network: str, norm: str, device: torch.device) -> nn.Module:
    model = build_network(network, arm=norm, depth=DEPTH, widths=WIDTHS, classes=CLASSES, seed=0)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.train()


def _make_step(model: nn.Module, x: Tensor, labels: Tensor, precision: Precision) -> Callable[[Mark], None]:
    """Give one step as the lab trains: bf16 by autocast, SGD with momentum and weight decay."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    autocast = functools.partial(torch.autocast, x.device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(mark: Mark) -> None:
        mark()
        with autocast():
            logits = model(x).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mark()

    return step


def _measures(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """Give loss and gradient norm of a first step in float32."""
    loss = F.cross_entropy(model(x), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()


def _difference(native: tuple[float, float], ours: tuple[float, float]) -> float:
    """Give the largest relative difference; infinite where something is not finite."""
    found = [abs(b - a) / abs(a) for a, b in zip(native, ours, strict=True)]
    return max(found) if all(map(math.isfinite, found)) else math.inf
