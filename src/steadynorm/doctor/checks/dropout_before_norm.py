"""Dropout whose output a batch norm normalizes.

Looks at: a dropout that a batch norm follows in an nn.Sequential, with linear layers, activations and changes of shape
between the two at most.

Harm: in training dropout raises the variance of its output to E[x²]/(1 − p) − E[x]², and running_var learns that; in
evaluation dropout is off and the variance smaller, so the channel's gain is too small. Measuring the statistics again
in evaluation heals evaluation, not the training that follows.

Remedy: move the dropout behind the last batch norm, or measure the statistics in evaluation (``recalibrate_``).

Threshold: a probability of at least 0.05; below it the variance changes by some 5 %.

Source: Li et al. 2019 (arXiv 1801.05134).
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence, ModuleState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

LEAST = 0.05
_REMEDY = Remedy(
    advice="Move the dropout behind the batch norm, or measure the statistics in evaluation (recalibrate_).",
    treatment="recalibrate",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    norms = {norm.name: norm for norm in evidence.batch_norms if not norm.is_frozen}
    for module in evidence.modules:
        if module.kind != "dropout" or module.probability < LEAST:
            continue
        norm = norms.get(_next_norm(evidence, module))
        if norm is not None:
            problem = (
                f"{module.name} (probability {module.probability:g}) feeds it: its running variance is of training "
                "with dropout, too large for evaluation without."
            )
            yield at(norm, Severity.WARNING, problem, _REMEDY, probability=module.probability)


def _next_norm(evidence: Evidence, module: ModuleState) -> str:
    """Name the norm that comes after a module; empty where something else comes first."""
    name = module.following
    while name in evidence.by_name and evidence.by_name[name].kind in ("linear", "activation", "shape", "dropout"):
        name = evidence.by_name[name].following
    return name
