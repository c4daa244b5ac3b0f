"""Evaluation is worse than the same batches with their own statistics.

Looks at: the score of the batches in evaluation, with every batch norm on the batch's statistics (nothing else in
training mode: no dropout), and with one layer after the other on them.

Harm: the running estimates do not describe what the layers are given now: lost, stale or poisoned statistics, a
learning rate at which an average cannot follow, data that are not those of the training. A model that looks fine in
training mode fails in evaluation.

Remedy: measure the statistics again on training data (``recalibrate_``). Safe where the batches are like the data that
the model will see; it can be undone.

Threshold: the score would be better by more than three standard errors over the batches, and by more than a twentieth
of itself. Batch statistics are noisier than running ones, so a healthy model is better in evaluation. A layer is named
where it alone wins back a fifth of that.

Source: pytorch issue 4741; Wu & Johnson 2021 (arXiv 2105.07576).
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.compared import cost_of, distance_of
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, of_model

NEEDS = ("batches", "score")
SHARE = 0.2
"""Of the gap, won back by one layer alone: then it is named."""
_REMEDY = Remedy(
    advice="Measure the statistics again on a few hundred training images (recalibrate_).", treatment="recalibrate"
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    runs = evidence.batches
    assert runs is not None
    cost = cost_of(runs.score, runs.evaluation, runs.by_batch)
    if cost is None or not cost.matters(runs.by_batch):
        return
    gains = {
        name: gain.value / cost.value
        for name, scores in runs.one_layer.items()
        if (gain := cost_of(runs.score, runs.evaluation, scores)) is not None
    }
    guilty = sorted((name for name, share in gains.items() if share > SHARE), key=lambda name: -gains[name])
    norms = {norm.name: norm for norm in evidence.norms}
    problem = f"In evaluation the {runs.score} is worse by {cost.value:.3g} than with the batches' own statistics"
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


def _distance(evidence: Evidence, norm: NormState) -> dict[str, float]:
    assert evidence.batches is not None
    found = distance_of(norm, evidence.batches.sightings.get(norm.name, ()))
    return {} if found is None else {"distance": found.excess}
