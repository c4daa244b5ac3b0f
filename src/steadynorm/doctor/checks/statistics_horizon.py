"""Running statistics that still contain their initial values.

Looks at: momentum and the counter of batches. After n batches the start, mean 0 and variance 1, has the weight (1 −
momentum)ⁿ; removing it leaves the batches' own average.

Harm: with momentum 0.01 and 100 steps more than a third of the running statistics is still the start, so evaluation
normalizes by values between it and the data's. It shows as a gap between training and evaluation that closes with the
number of steps: short trainings, few steps per epoch, a small momentum.

Remedy: measure the statistics (``recalibrate_``), train longer, or raise the momentum. Safe.

Threshold: removing the start moves some channel by more than a tenth of a standard deviation, or its standard deviation
by more than a tenth. A layer whose running variance is smaller than the start's weight cannot have begun there (its
counter was reset, or its statistics are a plain average); it is skipped, and so are all layers with the same counter
and momentum, which have the same history. If batches were given, removing the start must also bring the running
statistics nearer to them by more than sampling explains, and by half of the squared distance: statistics that were
measured since contain no start, and batches say little about a layer after another fault. A note if the layer trains
and less than a twentieth is left, which vanishes with the next steps.

Source: the exponential average of torch.nn.functional.batch_norm written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from steadynorm.doctor.compared import distance_of
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

CHANGE = 0.1
"""Smallest change that counts: of a mean in standard deviations, of a standard deviation relative to itself."""
SOON = 0.05
"""Weight of the start that training may leave, since it vanishes: after three times 1/momentum batches."""
EXPLAINED = 0.5
"""Smallest fraction of the squared distance from the batches that the start must explain."""
_REMEDY = Remedy(
    advice="Measure the statistics on training images (recalibrate_), or raise the momentum.", treatment="recalibrate"
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    elsewhere = {(norm.momentum, norm.batches) for norm in evidence.norms if _began_elsewhere(norm)}
    for norm in evidence.norms:
        weight = _weight_of_start(norm)
        if weight is None or norm.mean is None or norm.var is None or norm.at_start:
            continue
        if (norm.momentum, norm.batches) in elsewhere:
            continue
        change = _largest_change(norm.mean, norm.var, norm.eps, weight)
        if change is not None and change > CHANGE and not _contradicted(evidence, norm, weight):
            assert norm.momentum is not None
            problem = (
                f"After {norm.batches} batches with momentum {norm.momentum:g}, {100 * weight:.2g} % of its running "
                f"statistics is still the start (mean 0, variance 1), off by up to {change:.2g} standard deviations."
            )
            severity = Severity.NOTE if norm.moves and weight < SOON else Severity.WARNING
            yield at(norm, severity, problem, _REMEDY, weight=weight, change=change, batches=norm.batches or 0)


def _contradicted(evidence: Evidence, norm: NormState, weight: float) -> bool:
    """Return whether removing the start brings the running statistics no nearer to the batches, beyond chance."""
    seen = () if evidence.described is None else evidence.described.sightings.get(norm.name, ())
    stored = distance_of(norm, seen)
    if stored is None:
        return False
    assert norm.mean is not None and norm.var is not None
    own_mean, own_var = _without_start(norm.mean, norm.var, weight)
    own = distance_of(replace(norm, mean=own_mean, var=own_var), seen)
    if own is None:
        return False
    nearer = stored.size**2 - own.size**2
    return nearer <= 2 * stored.error**2 or nearer < EXPLAINED * stored.excess**2


def _without_start(mean: Tensor, var: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    return mean / (1 - weight), (var - weight).clamp(min=0) / (1 - weight)


def _weight_of_start(norm: NormState) -> float | None:
    if not norm.has_momentum or norm.momentum is None or not norm.batches or not 0 < norm.momentum < 1:
        return None
    return float((1 - norm.momentum) ** norm.batches)


def _began_elsewhere(norm: NormState) -> bool:
    """Return whether a running variance is smaller than the remaining part of a start at 1."""
    weight = _weight_of_start(norm)
    return weight is not None and norm.var is not None and bool((norm.var < weight * (1 - 1e-3)).any())


def _largest_change(mean: Tensor, var: Tensor, eps: float, weight: float) -> float | None:
    """Return the distance of the batches' own average from the running statistics; None if these are not finite."""
    if not (mean.isfinite() & var.isfinite()).all():
        return None
    own_mean, own_var = _without_start(mean, var, weight)
    shift = (own_mean - mean).abs() / (own_var + eps).sqrt()
    gain = ((var + eps) / (own_var + eps)).sqrt().log().abs()
    return float(max(shift.max(), gain.max()))
