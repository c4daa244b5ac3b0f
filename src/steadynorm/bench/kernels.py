"""Time forward and backward of a normalization alone, ours beside torch's own, over a grid of inputs.

Question: how many times as fast as torch's layers is ours, and how near to the least that memory allows?

Expected: a norm with its ReLU at least 3.5 times as fast on a CPU, and at least half of the byte floor for inputs of
8 MB and more; on a GPU twice as fast and 80 % of the floor for big bfloat16 inputs in channels-last.

Cost: the default grid takes about ten minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from steadynorm.bench.agreement import check_agreement
from steadynorm.bench.cases import Case, DType, Layout, Network, Op, Skipped, make_grid
from steadynorm.bench.display import Display
from steadynorm.bench.memory import peak_bytes, saved_bytes
from steadynorm.bench.record import Record, begin_record, check_config, keep_record
from steadynorm.bench.results import CaseResult, case_to_json, make_side_result
from steadynorm.bench.sides import Inputs, Mark, build_modules, copy_input, forward_backward, make_inputs
from steadynorm.bench.summary import summarize
from steadynorm.bench.table import case_row, header
from steadynorm.bench.timing import cache_bytes, interleave, make_clock
from steadynorm.lab.machine import choose_device
from steadynorm.ops.dispatch import explain_backend
from steadynorm.ops.reference import Activation

__all__ = ["KernelsConfig", "run"]

MAX_MB = {"cpu": 128.0, "cuda": 1024.0}
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class KernelsConfig:
    """Time norm layers alone, forward and backward: a memory copy, torch's own, ours.

    Each case first holds ours to the float64 reference, and shows no speed where they disagree. Sides are
    interleaved in one process. Default: about ten minutes on two cores.
    """

    op: tuple[Op, ...] = ("norm_relu",)
    """What is timed: the norm alone, with a ReLU, with a residual and a ReLU."""
    shapes: tuple[Network, ...] = ("cnn", "resnet50")
    """Whose norm inputs: the lab's cnn on 32x32 images, ResNet-50 on 224x224 images."""
    batches: tuple[int, ...] = ()
    """Batch sizes; default: 1, 32 and the largest of 1, 8, 32, 128, 256 that --max-mb allows for the shape."""
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    """Of the input; parameters and statistics are float32, as under autocast."""
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    """Of the input."""
    max_mb: float | None = None
    """Skip inputs above this many 10^6 bytes; default: 128 on a CPU, 1024 on a GPU."""
    compile: bool = False
    """Time torch.compile of torch's layers as well; needs a C++ compiler on a CPU, and seconds per case."""
    seconds: float = 0.5
    """Time spent on the rounds of a case; at least seven rounds are made."""
    threads: int | None = None
    """Threads of all sides; default: torch's own choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    out: Path | None = None
    """Directory for the record, bench_kernels_DEVICE_DATE.json; none is ever overwritten."""
    json: bool = False
    """Print the record as JSON on standard output."""


def run(config: KernelsConfig, display: Display) -> Record:
    """Measure every case of the grid.

    Returns:
        the record, which has been written where ``out`` says so; a run that is interrupted writes what it has.

    Raises:
        UserError: what was asked for cannot be done.
    """
    check_config(config)
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    cases, skipped = make_grid(
        ops=config.op,
        networks=config.shapes,
        batches=config.batches,
        dtypes=config.dtypes,
        layouts=config.layouts,
        max_mb=MAX_MB[device.type] if config.max_mb is None else config.max_mb,
    )
    head = begin_record("kernels", config, device) | {"cache_bytes": cache_bytes(device)}
    for one in skipped:
        display.line(f"skipped: {one.case.label}: {one.reason}")
    display.line(header(with_compile=config.compile))
    results: list[CaseResult] = []
    try:
        for number, case in enumerate(cases, start=1):
            display.doing(case.label, number=number, of=len(cases))
            results.append(measure_case(case, device, compiled=config.compile, seconds=config.seconds))
            display.line(case_row(results[-1]))
    except KeyboardInterrupt:
        _finish(head, config, results, skipped, display, complete=False)
        raise
    return _finish(head, config, results, skipped, display, complete=True)


def measure_case(case: Case, device: torch.device, *, compiled: bool, seconds: float) -> CaseResult:
    """Hold ours to the reference, then time all sides, then look at their memory."""
    if compiled:
        torch.compiler.reset()  # else a new shape would be compiled for all shapes, and more slowly
    inputs = make_inputs(case, device, sets=1 + cache_bytes(device) // case.x_bytes)
    modules = build_modules(case, device, compiled=compiled)
    activation: Activation | None = None if case.op == "norm" else "relu"
    agreement = check_agreement(modules["ours"], modules["torch"], inputs[0], activation)
    backend = explain_backend(inputs[0].x, inputs[0].residual, fused=case.op != "norm")
    if not agreement.agrees:
        return CaseResult(case=case, backend=backend, agreement=agreement, sides={})
    works = _works(modules, itertools.cycle(inputs))
    for _ in range(WARM_UP):
        for work in works.values():
            work(lambda: None)
    samples = interleave(works, make_clock(device), seconds=seconds)
    sides = {"copy": make_side_result(samples["copy"], floor_bytes=2 * case.x_bytes)}
    for name, module in modules.items():
        sides[name] = make_side_result(
            samples[name],
            floor_bytes=case.floor_bytes,
            peak_bytes=peak_bytes(functools.partial(works[name], lambda: None), device),
            saved=saved_bytes(module, inputs[0]),
        )
    return CaseResult(case=case, backend=backend, agreement=agreement, sides=sides)


def _works(modules: dict[str, nn.Module], feed: Iterator[Inputs]) -> dict[str, Callable[[Mark], None]]:
    """Let every call, of whichever side, take the next inputs: those that were touched longest ago."""

    def work(module: nn.Module) -> Callable[[Mark], None]:
        return lambda mark: forward_backward(module, next(feed), mark)

    return {"copy": lambda mark: copy_input(next(feed), mark)} | {name: work(m) for name, m in modules.items()}


def _finish(
    head: Record,
    config: KernelsConfig,
    results: Sequence[CaseResult],
    skipped: Sequence[Skipped],
    display: Display,
    *,
    complete: bool,
) -> Record:
    """Complete the record, and write it where there is something to write."""
    record = head | {
        "complete": complete,
        "summary": dataclasses.asdict(summarize(results, head["device"])),
        "skipped": [dataclasses.asdict(one.case) | {"reason": one.reason} for one in skipped],
        "cases": [case_to_json(result) for result in results],
    }
    return keep_record(config.out if results else None, record, display)
