"""Run the checks on a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.diagnosis import Diagnosis
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
        metric: output and batch -> a number of which more is better.
        optimizer: of its parameters.
        skip: names of checks that are not to run.

    Returns:
        the diagnosis; printed, it is three lines for a healthy model.

    Raises:
        TypeError: the model is no module.
        ValueError: ``skip`` names an unknown check.

    >>> print(diagnose(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU())).is_healthy)
    True
    """
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"diagnose: skip must name checks, got {unknown[0]!r}. They are {', '.join(CHECKS)}.")
    evidence = observe(model, batches, forward=forward, loss=loss, metric=metric, optimizer=optimizer)
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
            not_run[check.name] = ", ".join(missing)
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
