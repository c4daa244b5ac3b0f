"""Statistics measured now would give a better model.

Looks at: the score on every second batch, in evaluation, before and after the statistics are measured on the others (in
one pass; the model is restored). Alternating batches put ordered data into both halves.

Harm: weights and statistics do not match. Pruning, quantising, merging, averaging (EMA, SWA) and slicing change weights
but not statistics; with a large learning rate the running average lags behind.

Remedy: measure the statistics again on training data (``recalibrate_``). Safe if the batches resemble the data that the
model will see; it can be undone.

Threshold: as for ``train-eval-gap``, on images that the statistics have not seen. And some layer's running statistics
are an eighth of a standard deviation off, beyond sampling: if they match the batches, the gain from a few batches is
chance. Up to three layers are named if they stand out as for ``train-eval-gap``.

Source: Izmailov et al. 2018 (arXiv 1803.05407), section 3.2; Wu & Johnson 2021 (arXiv 2105.07576).
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.compared import cost_of, few_off
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, of_model
from steadynorm.doctor.shared import FITTING, STALE, furthest

NEEDS = ("batches", "score")
_REMEDY = Remedy(advice="Measure the statistics again on training images (recalibrate_).", treatment="recalibrate")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    runs = evidence.batches
    assert runs is not None
    cost = cost_of(runs.score, runs.evaluation[1::2], runs.recalibrated)
    distance = furthest(evidence)
    if cost is not None and distance > FITTING and cost.matters(runs.recalibrated, expected=distance > STALE):
        problem = f"With statistics measured on half of the batches the {runs.score} of the other half is better."
        norms = {norm.name: norm for norm in evidence.norms}
        few, _ = few_off(runs)
        if not few:
            yield of_model(Severity.WARNING, problem, _REMEDY, cost)
        for name in few:
            problem_here = f"{problem} Those of this layer are the furthest off."
            yield of_model(Severity.WARNING, problem_here, _REMEDY, cost, norms[name], off=runs.off[name])
