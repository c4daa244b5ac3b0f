"""Dropout whose output a batch norm normalizes.

Looks at: a dropout that a batch norm follows in an nn.Sequential, with linear layers, activations and changes of shape
between the two at most; with batches, also one in a forward of its own, and the running variance beside the batches'.

Harm: in training dropout raises the variance of its output to E[x²]/(1 − p) − E[x]², and running_var learns that; in
evaluation dropout is off and the variance smaller, so the channel's gain is too small. Measuring the statistics again
in evaluation repairs evaluation, not the training that follows.

Remedy: move the dropout behind the last batch norm, or measure the statistics in evaluation (``recalibrate_``).

Threshold: a probability of at least 0.05; below it the variance changes by some 5 %. A note where the model evaluates
and the running variance is not larger than the batches' by more than chance and 4 %, nor the estimates a quarter of a
standard deviation from the batches (dropout that sets to another value than 0 moves the mean): measured in evaluation,
they are right. A dropout that no nn.Sequential shows counts only where it is larger, or the model trains.

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
    advice="Move the dropout behind the batch norm, or measure the statistics in evaluation (recalibrate_).",
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
            problem = f"{feeds}: training on would make its running variance too large for evaluation without."
            yield at(norm, Severity.NOTE, problem, _REMEDY, probability=probability)
        else:
            problem = f"{feeds}: its running variance is of training with dropout, too large for evaluation without."
            yield at(norm, Severity.WARNING, problem, _REMEDY, probability=probability)


def _is_larger(evidence: Evidence, norm: NormState) -> bool | None:
    """Return whether the running variance is larger than the batches', or both are far apart; None without batches."""
    distance = None if evidence.batches is None else distance_of(norm, evidence.batches.sightings.get(norm.name, ()))
    if distance is None:
        return None
    return -float(distance.log_gain.mean()) > 2 * distance.error + SMALL or distance.excess > STALE


def _next_norm(evidence: Evidence, module: ModuleState) -> str:
    """Name the norm that comes after a module; empty where something else comes first."""
    name = module.following
    while name in evidence.by_name and evidence.by_name[name].kind in ("linear", "activation", "shape", "dropout"):
        name = evidence.by_name[name].following
    return name
