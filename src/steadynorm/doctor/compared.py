"""What the batches say of a layer's running statistics, in units of its own sampling error."""

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
"""Layers that may stand out; how many times further off than all others; and standard deviations at least."""
DEFAULT_EPS = 1e-5
MOST = 0.5
"""Of the gap, won back by layers that stand out: then they are named."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far running statistics are from what the batches say.

    Args:
        shift: (mean of the batches − running mean) / √(running variance + eps), shape (C,).
        log_gain: ½·log( (variance of the batches + eps) / (running variance + eps) ), shape (C,).
        error: standard error of ``shift``, of a channel: that of the batches' mean, and that of an exponential
            average over batches of the same size. The error of ``log_gain`` is of the same order.
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
        """The size that sampling alone gives on average: √2·error."""
        return math.sqrt(2) * self.error

    @property
    def excess(self) -> float:
        """The part of ``size`` that sampling does not explain; 0 where it explains all."""
        return math.sqrt(max(0.0, self.size**2 - self.sampling**2))


def pooled(sightings: Sequence[Sighting]) -> Moments:
    """Give the moments of all inputs together."""
    return join([Moments(mean=each.mean, var=each.var, count=each.count) for each in sightings])


def by_call(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """Give the inputs of each call in a forward."""
    return [[each for each in sightings if each.call == call] for call in sorted({each.call for each in sightings})]


def described(sightings: Sequence[Sighting]) -> Moments:
    """Give the moments that running statistics should be: calls of a forward count alike, as they do in training."""
    each = [pooled(calls) for calls in by_call(sightings)]
    mean, var = (sum(values[1:], values[0]) / len(values) for values in ([e.mean for e in each], [e.var for e in each]))
    return Moments(mean=mean, var=var, count=sum(e.count for e in each))


def independent_of(sightings: Sequence[Sighting]) -> float | None:
    """Give the independent values per channel of the smallest batch, N/noise; None where the batches do not tell.

    Batches of a single sample tell it together: each one's mean is a sample's.
    """
    known = [each for each in sightings if math.isfinite(each.noise)]
    noises = [each.noise for each in known] or [_noise_of_singles(calls) for calls in by_call(sightings)]
    samples = min((each.samples for each in known or sightings), default=0)
    noise = sum(noises) / len(noises) if noises else math.nan
    return samples / max(noise, 1e-12) if math.isfinite(noise) else None


def _noise_of_singles(sightings: Sequence[Sighting]) -> float:
    """Give the variance of one sample's mean in units of that of its values, from batches of one sample each."""
    if len(sightings) < 2 or any(each.samples != 1 for each in sightings):
        return math.nan
    var = pooled(sightings).var
    ratios = stack([each.mean for each in sightings]).var(0)[var > 0] / var[var > 0]
    return float(ratios.mean()) if len(ratios) else 1.0


def distance_of(norm: NormState, sightings: Sequence[Sighting]) -> Distance | None:
    """Compare a layer's running statistics with its inputs; None where it has none, or they are no finite numbers."""
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
    """Give how much more a score is over some batches than over others; None where either has none.

    Args:
        before: a score for each batch, of which less is better.
        after: of other batches.
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
    """Give how much less a score is after than before, over the batches that have both; None where none has.

    Args:
        quantity: name of the score.
        before: a score for each batch, of which less is better.
        after: likewise, of the same batches.
    """
    gains = [first - second for first, second in zip(before, after, strict=False)]
    gains = [gain for gain in gains if math.isfinite(gain)]
    if not gains:
        return None
    mean = sum(gains) / len(gains)
    square = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1) if len(gains) > 1 else math.nan
    return Cost(quantity=quantity, value=mean, standard_error=math.sqrt(square / len(gains)))


def won_back(runs: Runs) -> Mapping[str, float]:
    """Give what each layer alone wins back by the batches' own statistics, as a share of what all of them win.

    Returns:
        name -> share, over the batches on which single layers were tried, which they are where :func:`may_matter` says
        so; empty where they were not, or all of them win nothing there.
    """
    return {name: share for name, scores in runs.one_layer.items() if (share := share_of_gap(runs, scores)) is not None}


def share_of_gap(runs: Runs, scores: Sequence[float]) -> float | None:
    """Give the share of the gap that scores on the first batches win back; None where there is none, or no gap."""
    whole = cost_of(runs.score, runs.evaluation[: len(scores)], runs.by_batch)
    gain = cost_of(runs.score, runs.evaluation, scores)
    return gain.value / whole.value if whole is not None and gain is not None and whole.value > 0 else None


def may_matter(quantity: str, evaluation: Sequence[float], by_batch: Sequence[float]) -> bool:
    """Tell whether batches' own statistics are better by so much that a check may ask which layer does it."""
    gap = cost_of(quantity, evaluation, by_batch)
    return gap is not None and gap.matters(by_batch, expected=True)


def standing_out(off: Mapping[str, float]) -> tuple[str, ...]:
    """Name the few layers whose running statistics are off, and clearly further than those of all others.

    Each layer is compared with what it is given while all others normalize by the batch, so that none is off because
    one before it is.
    """
    order = sorted(off, key=lambda name: -off[name])
    for number in range(min(FEW, len(order)), 0, -1):
        following = max((off[name] for name in order[number:]), default=0.0)
        if off[order[number - 1]] > max(OFF, CLEAR * following):
            return tuple(name for name in off if name in order[:number])
    return ()


def few_off(runs: Runs) -> tuple[tuple[str, ...], float | None]:
    """Name the few layers that stand out, and give the share of the gap that they win back; none where that is little.

    The share is None where it was not tried.
    """
    for names, scores in runs.few_layers.items():
        share = share_of_gap(runs, scores)
        return (names if share is not None and share >= MOST else ()), share
    return standing_out(runs.off), None


def usual_eps(each: Iterable[float]) -> float | None:
    """Give the eps that most layers have; of several the one next to torch's default; None without layers."""
    counts = Counter(each)
    if not counts:
        return None
    return max(counts, key=lambda eps: (counts[eps], -abs(math.log(max(eps, 1e-30) / DEFAULT_EPS))))
