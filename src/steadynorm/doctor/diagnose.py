"""Run the checks on a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from steadynorm.doctor.check import NEEDED
from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.diagnosis import Diagnosis
from steadynorm.doctor.elsewhere import Ranks
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding
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
            loss nor metric is given, and output and batch look like a classifier's (logits of shape (N, K), labels as
            the batch's second item), cross-entropy is taken; else costs are not measured.
        metric: output and batch -> a number of which more is better, such as :func:`steadynorm.doctor.accuracy`.
            Findings call it by the function's name.
        optimizer: of its parameters.
        reference: batches that the model is known to be good on, such as those of its validation.
        checkpoint: that the model is to be as, in any form that people keep.
        ranks: a state dict of every rank; or the process group, and then every rank must call, or it waits for ever.
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
    order = {name: at for at, name in enumerate(CHECKS)}
    findings.sort(key=lambda each: (-each.severity, order[each.check]))
    return Diagnosis(
        findings=tuple(findings),
        looked_at=_scope(evidence),
        checks=tuple(ran),
        not_run=not_run,
        unread=evidence.unread,
    )


def _scope(evidence: Evidence) -> str:
    kinds: dict[str, int] = {}
    for norm in evidence.norms:
        name = norm.label.split("(")[0].rsplit(".", 1)[-1]
        kinds[name] = kinds.get(name, 0) + 1
    listed = ", ".join(f"{number} {name}" for name, number in kinds.items()) or "no normalization layer"
    return f"{listed}, in {'training' if evidence.training else 'evaluation'} mode,"
