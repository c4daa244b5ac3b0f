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
    """Find normalization faults in a model, with their cost and a remedy.

    The model is left unchanged, bit for bit.

    Args:
        model: the root module, in any mode, wrapped or not.
        batches: batches like the data that the model is used on; at most eight are used. Without them the model is not
            run, and only checks of the modules run.
        forward: (model, batch) -> output: how to run the model on a batch; see :func:`steadynorm.surgery.recalibrate_`.
        loss: (output, batch) -> a number where less is better, averaged over the batch. With neither loss nor metric,
            cross-entropy is used if output and batch look like a classifier's (logits (N, K, ...) and, as the batch's
            second item, labels or class probabilities), else the output's own ``loss`` (Hugging Face models), else
            nothing is scored.
        metric: (output, batch) -> a number where more is better, such as :func:`steadynorm.doctor.accuracy`; findings
            use the function's name.
        optimizer: the model's optimizer.
        reference: batches on which the model is known to be good, such as validation data.
        checkpoint: a state that the model should equal: a state dict, a loaded checkpoint or a module.
        ranks: a state dict of every rank; or the process group, and then every rank must call this, or it hangs.
        accumulation: number of forwards of a worker per optimizer step.
        world_size: number of workers; None asks torch.distributed.
        skip: names of checks that should not run.

    Returns:
        the Diagnosis; printed, it is three lines for a healthy model.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``skip`` names an unknown check; ``batches`` is empty; the checkpoint has none of the model's names.

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
    """Run every check for which there is evidence.

    Args:
        evidence: from :func:`steadynorm.doctor.observe`.
        skip: names of checks that should not run.

    Returns:
        the Diagnosis.
    """
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
    """Downgrade findings that a worse one explains to notes; they keep their treatments."""
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
    """Yield a summary of each batch norm that the batches reach."""
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
    """Name the layers whose inputs are not finite, since most checks cannot judge them."""
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
