"""Evaluation that is worse than with the batches' own statistics.

Looks at: the score of the batches in evaluation, and with every batch norm on batch statistics (nothing else in
training mode: no dropout); if that is better, also with each layer in turn on them. If a layer's calls in one forward
differ (``reused-norm``) and its running statistics are their average, the loss by sharing is not a gap: then statistics
measured now must also improve the score.

Harm: the running statistics do not describe the layers' current inputs: lost, stale or corrupted statistics, a learning
rate too large for the average to follow, or data unlike those of the training. A model that looks fine in training mode
fails in evaluation.

Remedy: measure the statistics again on training data (``recalibrate_``). Safe if the batches resemble the data that the
model will see; it can be undone.

Threshold: the score would be better, by Student's test over the batches at 2.5 %, and by more than a twentieth of
itself; one and a half standard errors and a fortieth are enough if a layer's running statistics are a quarter of a
standard deviation off, beyond sampling. Batch statistics are noisier than running ones, so a healthy model is better in
evaluation, and its gap is negative. Up to three layers are named if their running statistics are off by more than an
eighth of a standard deviation and twice as far as those of any other, each compared with its input while all normalize
by the batch, and if they recover half of the gap together. Otherwise a layer is named if it alone recovers a fifth more
of the gap than every layer that the model lists before it: later layers normalize again what an earlier one has
distorted, so they recover almost as much. Instance norms with running statistics are tried in the same way, all at
once: in training each uses a sample's own statistics, and in evaluation an average over all samples.

Source: pytorch issue 4741; pytorch-CycleGAN-and-pix2pix issue 395; Wu & Johnson 2021 (arXiv 2105.07576).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from steadynorm.doctor.compared import FEW, cost_of, distance_of, few_off, won_back
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Cost, Finding, Remedy, Severity, of_model
from steadynorm.doctor.shared import STALE, furthest, shared_by

NEEDS = ("batches", "score")
SHARE = 0.2
"""Fraction of the gap that a layer must recover alone to be named."""
_REMEDY = Remedy(
    advice="Measure the statistics again on a few hundred training images (recalibrate_).", treatment="recalibrate"
)

_BY_SAMPLE = Remedy(advice="Build them with track_running_stats=False, torch's default, so that both modes agree.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    runs = evidence.batches
    assert runs is not None
    instance = list(_instance_norms(evidence))
    if instance:  # they distort the inputs of later batch norms
        yield from instance
        return
    cost = cost_of(runs.score, runs.evaluation, runs.by_batch)
    stale = furthest(evidence) > STALE
    if cost is None or not cost.matters(runs.by_batch, expected=stale):
        return
    if not stale and any(shared_by(norm, runs.sightings.get(norm.name, ()))[1] for norm in evidence.batch_norms):
        fresh = cost_of(runs.score, runs.evaluation[1::2], runs.recalibrated)
        if fresh is None or not fresh.matters(runs.recalibrated):
            return
    gains = won_back(runs)
    few, won = few_off(runs)
    if few and won is not None:
        yield from _named(evidence, few, won, cost)
        return
    guilty = _first_to_help(gains, list(runs.sightings))
    norms = {norm.name: norm for norm in evidence.norms}
    problem = f"In evaluation the {runs.score} is worse than with the batches' own statistics"
    if not guilty:
        yield of_model(Severity.WARNING, f"{problem}; no single layer explains it.", _REMEDY, cost)
    for name in guilty:
        share = min(1.0, gains[name])
        yield of_model(
            Severity.WARNING,
            f"{problem}; {100 * share:.0f} % of that comes back when this layer alone takes them.",
            _REMEDY,
            cost,
            norms[name],
            share=share,
            **_distance(evidence, norms[name]),
        )


def _instance_norms(evidence: Evidence) -> Iterator[Finding]:
    """Find instance norms with running statistics that evaluate better with their training behaviour."""
    runs = evidence.batches
    assert runs is not None
    cost = cost_of(runs.score, runs.evaluation, runs.by_sample)
    if cost is None or not cost.matters(runs.by_sample):
        return
    tracked = [norm for norm in evidence.norms if norm.kind == "instance_norm" and norm.mean is not None]
    problem = (
        f"In evaluation the {runs.score} is worse than if instance norms with running statistics use each sample's "
        "own, as in training."
    )
    for norm in tracked if len(tracked) <= FEW else [None]:
        yield of_model(Severity.WARNING, problem, _BY_SAMPLE, cost, norm)


def _named(evidence: Evidence, names: Sequence[str], share: float, cost: Cost) -> Iterator[Finding]:
    assert evidence.batches is not None
    norms = {norm.name: norm for norm in evidence.norms}
    together = "this layer alone takes" if len(names) == 1 else f"{' and '.join(names)} take"
    problem = (
        f"In evaluation the {evidence.batches.score} is worse than with the batches' own statistics; "
        f"{100 * min(1.0, share):.0f} % of that comes back when {together} them, whose running statistics are further "
        "off than those of all other layers."
    )
    for name in names:
        off = evidence.batches.off[name]
        yield of_model(Severity.WARNING, problem, _REMEDY, cost, norms[name], share=min(1.0, share), off=off)


def _first_to_help(gains: Mapping[str, float], order: Sequence[str]) -> list[str]:
    """Name the layers that recover clearly more than all layers before them."""
    found: list[str] = []
    best = 0.0
    for name in order:
        if gains.get(name, 0.0) > best + SHARE:
            found.append(name)
        best = max(best, gains.get(name, 0.0))
    return found


def _distance(evidence: Evidence, norm: NormState) -> dict[str, float]:
    assert evidence.batches is not None
    found = distance_of(norm, evidence.batches.sightings.get(norm.name, ()))
    return {} if found is None else {"distance": found.excess}
