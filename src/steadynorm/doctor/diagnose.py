"""Run the checks on a model."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.diagnosis import Diagnosis
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding
from steadynorm.doctor.observe import observe

__all__ = ["diagnose", "judge"]


def diagnose(
    model: nn.Module, *, optimizer: torch.optim.Optimizer | None = None, skip: Collection[str] = ()
) -> Diagnosis:
    """Look for faults of normalization in a model, and say what they are and what to do.

    The model is left as it is, bit for bit.

    Args:
        model: the root, in any mode, wrapped or not.
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
    return judge(observe(model, optimizer=optimizer), skip=skip)


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
