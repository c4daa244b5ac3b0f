"""Put every fault into every network, let the doctor diagnose and treat it, and record the result."""

from __future__ import annotations

import copy
import math
import random
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.doctor.architectures import ARCHITECTURES, Half, Kind
from benchmarks.doctor.faults import FAULTS, Fault
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.peers import noticed, said
from benchmarks.doctor.subject import Case, Subject
from benchmarks.doctor.training import Data, accuracy, trained
from steadynorm.doctor import Diagnosis, Severity, diagnose, treat_
from steadynorm.surgery import recalibrate_

__all__ = ["Row", "measured"]

MOST_LAYERS = 3
"""Most layers that the doctor may name for a fault in one or two: more would not help a reader."""

COST = 0.02
"""Loss of accuracy from which a repair is measured, and a fault by its cost alone counts."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result for one network with one fault, or none.

    Args:
        half: whether thresholds may have been chosen on it.
        architecture: name of the network.
        seed: of its training.
        fault: its name; empty for a healthy network.
        variant: name of the healthy variant; empty for a fault.
        found: checks that reported a warning or an error.
        caught: whether one of the fault's causes is among them.
        false: checks that reported without cause.
        localisable: whether the fault is in at most two layers, and the network has more.
        placed: whether one of them is among at most :data:`MOST_LAYERS` that one of the checks names.
        healthy: accuracy before the fault.
        faulty: accuracy with it; NaN where the model cannot run.
        attainable: accuracy that can be restored: that before the fault, or, if it changes weights, that of these
            weights with statistics of 6,400 training samples.
        treated: accuracy after the treatment; NaN if the fault is not repairable or costs less than two points.
        seconds: of diagnosing.
        forwards: those seconds in units of one forward of a batch in evaluation.
        rivals: for a fault, the installed packages that report more than for the network without it.
    """

    half: Half
    architecture: str
    seed: int
    fault: str
    variant: str
    found: tuple[str, ...]
    caught: bool
    false: tuple[str, ...]
    localisable: bool
    placed: bool
    healthy: float
    faulty: float
    attainable: float
    treated: float
    seconds: float
    forwards: float
    rivals: Mapping[str, bool]


def measured(
    half: Half, seeds: range, data: Callable[[Kind], Data], folder: Path, only: Collection[str] = ()
) -> Iterator[Row]:
    """Measure one half: its faults in its architectures, or in those of ``only``, and the healthy variants of these."""
    for architecture in ARCHITECTURES.values():
        if architecture.half != half or (only and architecture.name not in only):
            continue
        if not architecture.is_available():
            print(f"{architecture.name}: not measured, install {architecture.package}", file=sys.stderr)
            continue
        for seed in seeds:
            here = data(architecture.kind)
            network = trained(architecture.name, seed, here, folder)
            right = accuracy(network, here)
            before = said(Case(model=network, batches=here.batches()))
            faults = (fault.name for fault in FAULTS.values() if fault.half == half)
            for name in [*faults, *(variant.name for variant in HEALTHY.values() if half in variant.halves)]:
                subject = Subject(
                    model=copy.deepcopy(network),
                    data=here,
                    draw=random.Random(f"{architecture.name} {seed} {name}"),
                    rate=architecture.rate,
                )
                torch.manual_seed(seed)
                fault = FAULTS.get(name)
                case = fault.inject(subject) if fault else HEALTHY[name].make(subject)
                if case is None:
                    continue
                accuracies = _measure(fault, case, right, here)
                if fault and fault.costs and not accuracies.attainable - accuracies.faulty >= COST:
                    print(f"{architecture.name}, seed {seed}, {name}: not counted, costs too little", file=sys.stderr)
                    continue
                row = _row(half, architecture.name, seed, name, fault, case, accuracies, here)
                yield replace(row, rivals=noticed(case, before)) if fault else row


@dataclass(frozen=True, kw_only=True)
class _Accuracies:
    """Accuracies of a case before the diagnosis: see :class:`Row`."""

    healthy: float
    faulty: float
    attainable: float


def _measure(fault: Fault | None, case: Case, right: float, data: Data) -> _Accuracies:
    return _Accuracies(
        healthy=right,
        faulty=_accuracy(case.model, data.fed(case.feed) if case.feed else data),
        attainable=_recalibrated(case, data) if fault and fault.damages else right,
    )


def _row(
    half: Half, architecture: str, seed: int, name: str, fault: Fault | None, case: Case, known: _Accuracies, data: Data
) -> Row:
    started = time.perf_counter()
    diagnosis = diagnose(case.model, case.batches, **case.options)
    seconds = time.perf_counter() - started
    found = {finding.check for finding in diagnosis if finding.severity >= Severity.WARNING}
    layers = case.layers or frozenset()
    repaired = fault is not None and fault.repairable and not known.faulty > known.healthy - COST
    return Row(
        half=half,
        architecture=architecture,
        seed=seed,
        fault=name if fault else "",
        variant="" if fault else name,
        found=tuple(sorted(found)),
        caught=fault is not None and bool(found & fault.causes),
        false=tuple(sorted(found - fault.causes - fault.consequences if fault else found)),
        localisable=fault is not None and 1 <= len(layers) <= 2,
        placed=fault is not None and _is_placed(diagnosis, fault, layers),
        healthy=known.healthy,
        faulty=known.faulty,
        attainable=known.attainable,
        treated=_treated(case, diagnosis, data) if repaired else math.nan,
        seconds=seconds,
        forwards=seconds / _forward_seconds(case),
        rivals={},
    )


def _is_placed(diagnosis: Diagnosis, fault: Fault, layers: frozenset[str]) -> bool:
    named: dict[str, set[str]] = {}
    for each in diagnosis:
        if each.check in fault.causes and each.severity >= Severity.WARNING and each.layer:
            named.setdefault(each.check, set()).add(each.layer)
    return any(found & layers and len(found) <= MOST_LAYERS for found in named.values())


def _treated(case: Case, diagnosis: Diagnosis, data: Data) -> float:
    model = copy.deepcopy(case.model)
    known = case.options.get("checkpoint")
    treatment = treat_(model, diagnosis, data.batches(64, 32, of="train"), checkpoint=known)
    return _accuracy(treatment.model, data)


def _recalibrated(case: Case, data: Data) -> float:
    model = copy.deepcopy(case.model)
    recalibrate_(model, data.batches(64, 100, of="train"))
    return _accuracy(model, data)


def _accuracy(model: nn.Module, data: Data) -> float:
    """Measure the accuracy in evaluation, on a copy, so that no measurement changes the next one."""
    dtype = next(model.parameters()).dtype
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) or dtype != torch.float32:
        return math.nan
    modes = [(module, module.training) for module in model.modules()]
    if modes[0][1]:
        model.eval()
    try:
        return accuracy(copy.deepcopy(model), data)
    finally:
        for module, mode in modes:
            module.training = mode


def _forward_seconds(case: Case) -> float:
    """Time a forward of a batch in evaluation; the least of three."""
    if case.batches is None:
        return math.nan
    model, (x, _) = copy.deepcopy(case.model).eval(), next(iter(case.batches))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        with torch.no_grad():
            model(x)
        times.append(time.perf_counter() - started)
    return min(times)


def as_json(row: Row) -> dict[str, object]:
    """Return a row with None for NaN."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(row).items()
    }
