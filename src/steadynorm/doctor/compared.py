"""Compare a layer's running statistics with the batches, in units of their sampling error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, stack

from steadynorm.doctor.batch_evidence import Runs, Sighting
from steadynorm.doctor.evidence import NormState
from steadynorm.doctor.finding import Cost
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import join
from steadynorm.statistics.noise import apart

__all__ = [
    "FEW",
    "Distance",
    "apart",
    "by_call",
    "cost_of",
    "described",
    "difference_of",
    "distance_of",
    "few_off",
    "independent_of",
    "may_matter",
    "pooled",
    "share_of_gap",
    "standing_out",
    "usual_eps",
    "won_back",
]

FEW, CLEAR, OFF = 3, 2.0, 0.125
"""At most this many layers stand out; they are this many times further off than all others, and at least so far."""
DEFAULT_EPS = 1e-5
MOST = 0.5
"""Fraction of the gap that outlying layers must recover to be named."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Distance of running statistics from the moments of the batches.

    Args:
        shift: (mean of the batches − running mean) / √(running variance + eps), shape (C,).
        log_gain: ½·log( (variance of the batches + eps) / (running variance + eps) ), shape (C,).
        error: standard error of a channel's ``shift``: of the batches' mean and of an exponential average over
            batches of the same size together. The error of ``log_gain`` is of the same order.
    """

    shift: Tensor
    log_gain: Tensor
    error: float

    @property
    def size(self) -> float:
        """Root mean square over channels of shift and log-gain together."""
        return float((self.shift.square() + self.log_gain.square()).mean().sqrt())

    @property
    def sampling(self) -> float:
        """Expected size from sampling alone: √2·error."""
        return math.sqrt(2) * self.error

    @property
    def excess(self) -> float:
        """Part of ``size`` that sampling does not explain; 0 if it explains all."""
        return math.sqrt(max(0.0, self.size**2 - self.sampling**2))


def pooled(sightings: Sequence[Sighting]) -> Moments:
    """Return the moments of all inputs pooled."""
    return join([Moments(mean=each.mean, var=each.var, count=each.count) for each in sightings])


def by_call(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """Group the inputs by call within a forward."""
    return [[each for each in sightings if each.call == call] for call in sorted({each.call for each in sightings})]


def described(sightings: Sequence[Sighting]) -> Moments:
    """Return the moments that running statistics should have: calls of a forward have equal weight, as in training."""
    each = [pooled(calls) for calls in by_call(sightings)]
    mean, var = (sum(values[1:], values[0]) / len(values) for values in ([e.mean for e in each], [e.var for e in each]))
    return Moments(mean=mean, var=var, count=sum(e.count for e in each))


def independent_of(sightings: Sequence[Sighting]) -> float | None:
    """Return the independent values per channel of the smallest batch, N/noise; None if the batches do not tell.

    Batches of one sample are used together: the mean of each is a sample's mean.
    """
    known = [each for each in sightings if math.isfinite(each.noise)]
    noises = [each.noise for each in known] or [_noise_of_singles(calls) for calls in by_call(sightings)]
    samples = min((each.samples for each in known or sightings), default=0)
    noise = sum(noises) / len(noises) if noises else math.nan
    return samples / max(noise, 1e-12) if math.isfinite(noise) else None


def _noise_of_singles(sightings: Sequence[Sighting]) -> float:
    """Return the variance of a sample's mean relative to that of its values, from batches of one sample each."""
    if len(sightings) < 2 or any(each.samples != 1 for each in sightings):
        return math.nan
    var = pooled(sightings).var
    ratios = stack([each.mean for each in sightings]).var(0)[var > 0] / var[var > 0]
    return float(ratios.mean()) if len(ratios) else 1.0


def distance_of(norm: NormState, sightings: Sequence[Sighting]) -> Distance | None:
    """Compare a layer's running statistics with its inputs; None if it has none or they are not finite."""
    if norm.mean is None or norm.var is None or not sightings or bool((norm.var < 0).any()):
        return None
    found = described(sightings)
    if not (norm.mean.isfinite() & norm.var.isfinite() & found.mean.isfinite() & found.var.isfinite()).all():
        return None
    scale = norm.var + norm.eps
    noises = [each.noise for each in sightings if math.isfinite(each.noise)]
    noise = sum(noises) / len(noises) if noises else 1.0
    samples = sum(each.samples for each in sightings)
    momentum = norm.momentum if norm.momentum is not None and 0 < norm.momentum < 1 else 0.0
    averaged = momentum / (2 - momentum) * noise / (samples / len(sightings))
    return Distance(
        shift=(found.mean - norm.mean) / scale.sqrt(),
        log_gain=((found.var + norm.eps) / scale).log() / 2,
        error=math.sqrt(noise / samples + averaged),
    )


def difference_of(before: Sequence[float], after: Sequence[float], quantity: str) -> Cost | None:
    """Return how much larger a score is on some batches than on others; None if either has no scores.

    Args:
        before: a score for each batch; less is better.
        after: scores of other batches.
        quantity: name of the score.
    """
    first, second = ([score for score in scores if math.isfinite(score)] for scores in (before, after))
    if len(first) < 2 or len(second) < 2:
        return None
    means = [sum(scores) / len(scores) for scores in (first, second)]
    error = sum(
        sum((score - mean) ** 2 for score in scores) / (len(scores) - 1) / len(scores)
        for scores, mean in zip((first, second), means, strict=True)
    )
    return Cost(quantity=quantity, value=means[1] - means[0], standard_error=math.sqrt(error))


def cost_of(quantity: str, before: Sequence[float], after: Sequence[float]) -> Cost | None:
    """Return how much smaller a score is after than before, over the batches with both; None if there are none.

    Args:
        quantity: name of the score.
        before: a score for each batch; less is better.
        after: scores of the same batches.
    """
    gains = [first - second for first, second in zip(before, after, strict=False)]
    gains = [gain for gain in gains if math.isfinite(gain)]
    if not gains:
        return None
    mean = sum(gains) / len(gains)
    square = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1) if len(gains) > 1 else math.nan
    return Cost(quantity=quantity, value=mean, standard_error=math.sqrt(square / len(gains)))


def won_back(runs: Runs) -> Mapping[str, float]:
    """Return the fraction of the gap that each layer alone recovers by using batch statistics.

    Returns:
        name -> fraction, over the batches on which single layers were tried (if :func:`may_matter` holds); empty if
        they were not tried, or all layers together recover nothing.
    """
    return {name: share for name, scores in runs.one_layer.items() if (share := share_of_gap(runs, scores)) is not None}


def share_of_gap(runs: Runs, scores: Sequence[float]) -> float | None:
    """Return the fraction of the gap that scores on the first batches recover; None without scores or without a gap."""
    whole = cost_of(runs.score, runs.evaluation[: len(scores)], runs.by_batch)
    gain = cost_of(runs.score, runs.evaluation, scores)
    return gain.value / whole.value if whole is not None and gain is not None and whole.value > 0 else None


def may_matter(quantity: str, evaluation: Sequence[float], by_batch: Sequence[float]) -> bool:
    """Return whether batch statistics are better by enough for a check to ask which layer is responsible."""
    gap = cost_of(quantity, evaluation, by_batch)
    return gap is not None and gap.matters(by_batch, expected=True)


def standing_out(off: Mapping[str, float]) -> tuple[str, ...]:
    """Name the few layers whose running statistics are off, and clearly further than those of all others.

    Each layer is compared with its inputs while all others use batch statistics, so that no layer is off because an
    earlier one is.
    """
    order = sorted(off, key=lambda name: -off[name])
    for number in range(min(FEW, len(order)), 0, -1):
        following = max((off[name] for name in order[number:]), default=0.0)
        if off[order[number - 1]] > max(OFF, CLEAR * following):
            return tuple(name for name in off if name in order[:number])
    return ()


def few_off(runs: Runs) -> tuple[tuple[str, ...], float | None]:
    """Name the few layers that stand out, and return the fraction of the gap that they recover; none if that is small.

    The fraction is None if it was not tried.
    """
    for names, scores in runs.few_layers.items():
        share = share_of_gap(runs, scores)
        return (names if share is not None and share >= MOST else ()), share
    return standing_out(runs.off), None


def usual_eps(each: Iterable[float]) -> float | None:
    """Return the most frequent eps; among ties the one closest to torch's default; None without layers."""
    counts = Counter(each)
    if not counts:
        return None
    return max(counts, key=lambda eps: (counts[eps], -abs(math.log(max(eps, 1e-30) / DEFAULT_EPS))))
