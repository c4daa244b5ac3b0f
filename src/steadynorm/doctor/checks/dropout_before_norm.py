"""Dropout whose output a batch norm normalizes.

Looks at: a dropout followed by a batch norm in an nn.Sequential, with only linear layers, activations and reshapes
between them; with batches, also in a custom forward, and the running variance compared with the batches'.

Harm: in training dropout raises the variance of its output to E[x²]/(1 − p) − E[x]², and running_var learns that; in
evaluation dropout is off and the variance smaller, so the channel's gain is too small. Measuring the statistics again
in evaluation repairs evaluation, not the training that follows.

Remedy: move the dropout after the last batch norm, or measure the statistics in evaluation (``recalibrate_``).

Threshold: a probability of at least 0.05; below it the variance changes by some 5 %. A note if the model evaluates, the
running variance is not larger than the batches' by more than chance and 4 %, and the running statistics are within a
quarter of a standard deviation of the batches (dropout to another value than 0 moves the mean): they were measured in
evaluation and are right. A dropout outside an nn.Sequential counts only if the running variance is larger, or the model
trains.

Source: Li et al. 2019 (arXiv 1801.05134).
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.compared import distance_of
from steadynorm.doctor.evidence import Evidence, ModuleState, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.shared import STALE

LEAST, SMALL = 0.05, 0.02
_REMEDY = Remedy(
    advice="Move the dropout after the batch norm, or measure the statistics in evaluation (recalibrate_).",
    treatment="recalibrate",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    norms = {norm.name: norm for norm in evidence.batch_norms if not norm.is_frozen}
    shown = {
        _next_norm(evidence, module): (module.name, module.probability)
        for module in evidence.modules
        if module.kind == "dropout" and module.probability >= LEAST
    }
    seen = {} if evidence.batches is None else evidence.batches.dropout
    hidden = {name: ("Dropout", probability) for name, probability in seen.items() if probability >= LEAST}
    for name, (dropout, probability) in (hidden | shown).items():
        norm = norms.get(name)
        if norm is None:
            continue
        larger = evidence.training or _is_larger(evidence, norm)
        if larger is False and name not in shown:
            continue
        feeds = f"{dropout} (probability {probability:g}) feeds it"
        if larger is False:
            problem = f"{feeds}: further training would make its running variance too large for evaluation."
            yield at(norm, Severity.NOTE, problem, _REMEDY, probability=probability)
        else:
            problem = f"{feeds}: its running variance comes from training with dropout and is too large for evaluation."
            yield at(norm, Severity.WARNING, problem, _REMEDY, probability=probability)


def _is_larger(evidence: Evidence, norm: NormState) -> bool | None:
    """Return whether the running variance is larger than the batches' or far from it; None without batches."""
    distance = None if evidence.batches is None else distance_of(norm, evidence.batches.sightings.get(norm.name, ()))
    if distance is None:
        return None
    return -float(distance.log_gain.mean()) > 2 * distance.error + SMALL or distance.excess > STALE


def _next_norm(evidence: Evidence, module: ModuleState) -> str:
    """Name the norm that follows a module; empty if something else comes first."""
    name = module.following
    while name in evidence.by_name and evidence.by_name[name].kind in ("linear", "activation", "shape", "dropout"):
        name = evidence.by_name[name].following
    return name
