"""Run the checks on a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from steadynorm.doctor.check import NEEDED
from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.compared import distance_of, won_back
from steadynorm.doctor.diagnosis import Diagnosis, LayerSummary
from steadynorm.doctor.elsewhere import Ranks
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Severity
from steadynorm.doctor.observe import observe
from steadynorm.doctor.score import Measure
from steadynorm.surgery.batches import Forward

__all__ = ["diagnose", "judge"]


def diagnose(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    forward: Forward | None = None,
    loss: Measure | None = None,
    metric: Measure | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    reference: Iterable[Any] | None = None,
    checkpoint: Mapping[str, Any] | nn.Module | None = None,
    ranks: Ranks | None = None,
    accumulation: int | None = None,
    world_size: int | None = None,
    skip: Collection[str] = (),
) -> Diagnosis:
    """Look for faults of normalization in a model, and say what they are and what to do.

    The model is left as it is, bit for bit.

    Args:
        model: the root, in any mode, wrapped or not.
        batches: that look like the data the model is used on; up to eight are looked at. Without them the checks that
            need the module tree alone run, and the model does not.
        forward: how to run the model on a batch, as for :func:`steadynorm.surgery.recalibrate_`.
        loss: output and batch -> a number of which less is better, the mean over the batch's samples. Where neither
            loss nor metric is given, and output and batch look like a classifier's, of images or of pixels (logits of
            shape (N, K, ...), labels or shares of classes as the batch's second item), cross-entropy is taken; else
            the output's own ``loss``, as Hugging Face's models give it; else costs are not measured.
        metric: output and batch -> a number of which more is better, such as :func:`steadynorm.doctor.accuracy`.
            Findings call it by the function's name.
        optimizer: of its parameters.
        reference: batches that the model is known to be good on, such as those of its validation.
        checkpoint: that the model is to be as, in any form that people keep.
        ranks: a state dict of every rank; or the process group, and then every rank must call, or it waits without end.
        accumulation: forwards of one worker for each step of the optimizer.
        world_size: workers; None asks torch.distributed.
        skip: names of checks that are not to run.

    Returns:
        the diagnosis; printed, it is three lines for a healthy model.

    Raises:
        TypeError: the model is no module.
        ValueError: ``skip`` names an unknown check; there are no batches; the checkpoint has none of the model's names.

    >>> print(diagnose(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU())).is_healthy)
    True
    """
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"diagnose: skip must name checks, got {unknown[0]!r}. They are {', '.join(CHECKS)}.")
    for name, number in (("accumulation", accumulation), ("world_size", world_size)):
        if number is not None and number < 1:
            raise ValueError(f"diagnose: {name} must be at least 1, got {number}.")
    evidence = observe(
        model,
        batches,
        forward=forward,
        loss=loss,
        metric=metric,
        optimizer=optimizer,
        reference=reference,
        checkpoint=checkpoint,
        ranks=ranks,
        accumulation=accumulation,
        world_size=world_size,
    )
    return judge(evidence, skip=skip)


def judge(evidence: Evidence, *, skip: Collection[str] = ()) -> Diagnosis:
    """Run every check that the evidence suffices for."""
    not_run: dict[str, str] = {}
    findings: list[Finding] = []
    ran = []
    for check in CHECKS.values():
        if check.name in skip:
            continue
        missing = [need for need in check.needs if getattr(evidence, need) is None]
        if missing:
            not_run[check.name] = ", ".join(NEEDED.get(need, need) for need in missing)
            continue
        ran.append(check.name)
        findings += check.findings(evidence)
    findings = _with_causes(findings)
    order = {name: at for at, name in enumerate(CHECKS)}
    findings.sort(key=lambda each: (-each.severity, order[each.check]))
    return Diagnosis(
        findings=tuple(findings),
        looked_at=_scope(evidence),
        checks=tuple(ran),
        not_run=not_run,
        unread=(*evidence.unread, *_unseen(evidence)),
        layers=tuple(_layers(evidence)),
    )


def _with_causes(findings: list[Finding]) -> list[Finding]:
    """Make notes of what a worse finding explains; their treatments stay."""
    causes = {
        consequence: each.check
        for each in findings
        if each.severity >= Severity.WARNING
        for consequence in CHECKS[each.check].explains
    }
    return [
        each
        if each.check not in causes or each.severity < Severity.WARNING
        else replace(
            each, severity=Severity.NOTE, problem=f"{each.problem} That comes of what {causes[each.check]} has found."
        )
        for each in findings
    ]


def _layers(evidence: Evidence) -> Iterator[LayerSummary]:
    """Give what the batches show of each batch norm that they reach."""
    runs = evidence.batches
    if runs is None:
        return
    shares = won_back(runs)
    for norm in evidence.batch_norms:
        seen = runs.sightings.get(norm.name, ())
        if seen:
            distance = distance_of(norm, seen)
            yield LayerSummary(
                name=norm.name,
                what=norm.label,
                distance=None if distance is None else _finite(distance.size),
                sampling=None if distance is None else distance.sampling,
                won_back=shares.get(norm.name),
            )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unseen(evidence: Evidence) -> Iterator[str]:
    """Name the layers whose inputs are no numbers, of which most checks can say nothing."""
    runs = evidence.batches
    if runs is None:
        return
    names = [
        name for name, seen in runs.sightings.items() if seen and not any(each.mean.isfinite().all() for each in seen)
    ]
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"the inputs of {names[0]}{others}, which are not finite. Repair what is found before it, or give batches "
            "that are finite, and diagnose again."
        )


def _scope(evidence: Evidence) -> str:
    kinds: dict[str, int] = {}
    for norm in evidence.norms:
        name = norm.label.split("(")[0].rsplit(".", 1)[-1]
        kinds[name] = kinds.get(name, 0) + 1
    listed = ", ".join(f"{number} {name}" for name, number in kinds.items()) or "no normalization layer"
    return f"{listed}, in {'training' if evidence.training else 'evaluation'} mode,"
