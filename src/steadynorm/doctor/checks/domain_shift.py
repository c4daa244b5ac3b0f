"""Data on which the norms' inputs differ from those of the reference batches, and the model is worse.

Looks at: the moments of every batch norm's input on the batches and on the reference batches, in evaluation; and the
score on both.

Harm: running statistics describe the training data. Another camera, scanner or season moves every layer's moments, and
the shift grows from layer to layer.

Remedy: measure the statistics on unlabelled data of the new domain (``recalibrate_``), which gives most of what
statistics can give. Not safe: the model then fits the new domain, and is worse on the old one. A gated layer
(``convert_``) trusts a batch the more, the more it differs.

Threshold: a channel's mean or variance differs by more standard errors than one of all channels of all layers does in 1
of 1000 healthy diagnoses (normal distribution, Bonferroni; errors from the spread of samples or of batches, whichever
is larger). And the score is worse beyond chance and by a twentieth of itself, as for ``train-eval-gap``; without a
score it is a note, if some layer is half a standard deviation off.

Source: Li et al. 2016 (arXiv 1603.04779), AdaBN; Schneider et al. 2020 (arXiv 2006.16971).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.compared import apart, cost_of, difference_of, pooled
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, of_model

NEEDS = ("batches", "reference")
FALSE_ALARMS = 1e-3
APART = 0.5
_REMEDY = Remedy(
    advice="Measure the statistics on data of the new domain (recalibrate_), if the model is used on it alone.",
    treatment="recalibrate",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    runs, known = evidence.batches, evidence.reference
    assert runs is not None and known is not None
    pairs = {
        norm.name: (norm, known.sightings.get(norm.name, ()), runs.sightings.get(norm.name, ()))
        for norm in evidence.batch_norms
    }
    channels = sum(len(first[0].mean) for _, first, second in pairs.values() if first and second)
    shifted = [
        (apart(pooled(first), pooled(second), eps=norm.eps), norm)
        for norm, first, second in pairs.values()
        if first and second and _surprise(norm, first, second) > _limit(channels)
    ]
    if not shifted:
        return
    distance, norm = max(shifted, key=lambda each: each[0])
    problem = f"Its inputs are {distance:.2g} standard deviations from those of the reference batches"
    if known.labels and known.labels == runs.labels:  # the same samples, in two versions
        cost = cost_of(runs.score, runs.evaluation, known.evaluation)
    else:
        cost = difference_of(known.evaluation, runs.evaluation, runs.score)
    if cost is None:
        if distance > APART:
            problem += "; without a score the cost is unknown."
            yield of_model(Severity.NOTE, problem, _REMEDY, None, norm, distance=distance)
    elif cost.matters(known.evaluation):
        problem += f", and the {runs.score} is worse by {cost.value:.3g}."
        yield of_model(Severity.WARNING, problem, _REMEDY, cost, norm, distance=distance, layers=len(shifted))


def _limit(channels: int) -> float:
    """Return the standard errors that any of these means and variances reaches by chance in 1 of 1000 diagnoses."""
    share = torch.tensor(FALSE_ALARMS / (4 * channels), dtype=torch.float64)
    return -float(torch.special.ndtri(share))


def _surprise(norm: NormState, first: Sequence[Sighting], second: Sequence[Sighting]) -> float:
    """Return the largest difference of a channel's mean or log-variance, in standard errors."""
    one, other = pooled(first), pooled(second)
    mean_error = _error([each.mean for each in first], [each.mean_error for each in first])
    mean_error = mean_error + _error([each.mean for each in second], [each.mean_error for each in second])
    var_error = _error([each.var for each in first], [each.var_error for each in first]) / (one.var + norm.eps).square()
    var_error = (
        var_error
        + _error([each.var for each in second], [each.var_error for each in second]) / (other.var + norm.eps).square()
    )
    means = (one.mean - other.mean).square() / mean_error
    gains = ((one.var + norm.eps) / (other.var + norm.eps)).log().square() / var_error
    found = torch.cat((means, gains))
    found = found[found.isfinite()]
    return float(found.max().sqrt()) if len(found) else 0.0


def _error(values: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
    """Return the squared error of the batches' mean: by the spread of samples, or that of batches if it is larger."""
    number = len(values)
    by_samples = torch.stack(list(errors)).nan_to_num(0).mean(0) / number
    return by_samples if number < 2 else torch.maximum(by_samples, torch.stack(list(values)).var(0) / number)
