"""Permutation tests of whether batches are drawn at random, on per-sample moments of several layers at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.statistics import Moments
from steadynorm.statistics.noise import moments_of_samples

__all__ = [
    "FALSE_ALARMS",
    "Samples",
    "are_two_views",
    "first_views",
    "log_variances",
    "moments_of",
    "samples_of",
    "samples_that_vary",
    "surprise",
    "with_variances",
]

_BY_SAMPLE = ("values", "means", "vars", "batch", "place", "odd")
CONSTANT = 1e-8
"""Fraction of the samples' mean variance over positions that rounding explains."""
MOST_LAYERS = 8
"""Number of layers tested, spread over the model: any layer shows how the data are drawn."""
PERMUTATIONS = 999
FALSE_ALARMS = 1 / (PERMUTATIONS + 1)
"""False-alarm rate: probability that healthy data lie beyond all permutations."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Per-sample moments of a layer's inputs.

    Args:
        norm: the layer.
        values: sample means in units of their standard deviation in each channel, shape (n, C), minus the class means
            if there are labels; without channels that do not vary.
        means: unscaled sample means, shape (n, C).
        vars: sample variances over positions, shape (n, C).
        batch: batch number of each sample, shape (n,).
        place: relative position of each sample in its batch, from 0 to 1, shape (n,).
        odd: whether the index of each sample in its batch is odd, shape (n,).
        classes: label of each sample, shape (n,); empty without labels.
    """

    norm: NormState
    values: Tensor
    means: Tensor
    vars: Tensor
    batch: Tensor
    place: Tensor
    odd: Tensor
    classes: Tensor

    @property
    def labelled(self) -> bool:
        """Whether class means are subtracted."""
        return len(self.classes) > 0


def samples_of(evidence: Evidence, chosen: Callable[[NormState], bool]) -> list[Samples]:
    """Return the samples of a few batch norms in model order, from the first call in each forward.

    Layers whose first dimension does not count samples (but tokens, for instance) are left out.

    Args:
        evidence: evidence with batches.
        chosen: selects the layers.
    """
    runs = evidence.batches
    assert runs is not None
    found = []
    for norm in evidence.batch_norms:
        seen = [each for each in runs.sightings.get(norm.name, ()) if each.call == 0 and len(each.at) > 1]
        if chosen(norm) and seen and all(each.samples == runs.sizes[each.batch] for each in seen):
            samples = _samples(norm, seen, runs.labels)
            if samples is not None:
                found.append(samples)
    step = max(1, -(-len(found) // MOST_LAYERS))
    return found[::step]


def _samples(norm: NormState, seen: Sequence[Sighting], labels: Sequence[Sequence[int]]) -> Samples | None:
    means = torch.cat([each.sample_means for each in seen]).double()
    variances = torch.cat([each.sample_vars for each in seen]).double()
    labelled = bool(labels) and all(len(labels[each.batch]) == each.samples for each in seen)
    classes = torch.tensor([labels[each.batch][at] for each in seen for at in each.at] if labelled else [])
    values = _without_classes(means, classes)
    spread = values.std(0)
    varies = (spread > 1e-6 * (means.abs().mean(0) + variances.mean(0).sqrt())) & spread.isfinite()
    if not varies.any():
        return None
    return Samples(
        norm=norm,
        values=(values / spread)[:, varies],
        means=means,
        vars=variances,
        batch=torch.tensor([each.batch for each in seen for _ in each.at]),
        place=torch.tensor([at / each.samples for each in seen for at in each.at]),
        odd=torch.tensor([at % 2 == 1 for each in seen for at in each.at]),
        classes=classes,
    )


def _without_classes(values: Tensor, classes: Tensor) -> Tensor:
    """Subtract each class's mean; without labels, nothing."""
    values = values.clone()
    for label in set(classes.tolist()):
        values[classes == label] -= values[classes == label].mean(0)
    return values


def log_variances(samples: Samples) -> Tensor:
    """Return the log-variances over positions, scaled like the means in ``values``, shape (n, C)."""
    logs = _without_classes((samples.vars + samples.norm.eps).log(), samples.classes)
    spread = logs.std(0)
    return (logs / spread)[:, (spread > 1e-6) & spread.isfinite()]


def with_variances(samples: Samples) -> Samples:
    """Return the samples with their log-variances over positions appended to their means, both whitened.

    Images differ most in brightness and contrast. Scaling all directions to the same variance, down to a tenth of the
    average variance, makes smaller differences visible too.
    """
    both = torch.cat((samples.values, log_variances(samples)), 1)
    along, sizes, _ = torch.linalg.svd(both - both.mean(0), full_matrices=False)
    return replace(samples, values=along * sizes / (sizes.square() + len(both) / 10).sqrt())


def are_two_views(labels: Sequence[Sequence[int]]) -> bool:
    """Return whether the second half of every batch repeats the labels of the first, as two views of images do."""
    halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in labels]
    return bool(halves) and all(len(first) > 1 and list(first) == list(second) for first, second in halves)


def first_views(samples: Samples) -> Samples:
    """Return the samples of the batches' first halves."""
    return _chosen(samples, samples.place < 0.5)


def samples_that_vary(samples: Samples) -> Samples:
    """Return the samples without blank ones, which have the same value at all positions."""
    variance = samples.vars.mean(1)
    return _chosen(samples, variance > CONSTANT * variance.mean())


def _chosen(samples: Samples, chosen: Tensor) -> Samples:
    names = (*_BY_SAMPLE, "classes") if samples.labelled else _BY_SAMPLE
    return replace(samples, **{name: getattr(samples, name)[chosen] for name in names})


def moments_of(samples: Samples, chosen: Tensor) -> Moments:
    """Return the moments of some samples' values, each sample weighted equally."""
    return moments_of_samples(Moments(mean=samples.means[chosen], var=samples.vars[chosen], count=1))


def surprise(
    layers: Sequence[Samples], weights: Callable[[Samples], Tensor], within: Callable[[Samples], Tensor]
) -> Mapping[int, float]:
    """Return the layers whose statistic exceeds that of all 999 random permutations at every layer.

    The statistic of a layer is Σⱼ ‖Σᵢ wⱼᵢ·valueᵢ‖², in standard deviations of its own permutations; the largest over
    layers is compared with the largest over layers of each permutation, so that many channels and layers raise no more
    false alarms than one. Exact for samples that are drawn alike, of whatever distribution.

    Args:
        layers: samples from :func:`samples_of`.
        weights: returns contrasts of a layer's samples, shape (k, n).
        within: returns the group within which each sample may be permuted, shape (n,).

    Returns:
        number of a layer beyond all permutations -> its statistic relative to their mean.
    """
    generator = torch.Generator().manual_seed(0)
    found = [_statistics(each, weights(each), within(each), generator) for each in layers]
    if not found:
        return {}
    means, spreads = ([float(part(each[1:])) for each in found] for part in (torch.mean, torch.std))
    scores = torch.stack([(e - m) / max(s, 1e-300) for e, m, s in zip(found, means, spreads, strict=True)])
    highest = scores[:, 1:].max()
    return {at: float(found[at][0]) / max(means[at], 1e-300) for at in range(len(layers)) if scores[at, 0] > highest}


def _statistics(samples: Samples, weights: Tensor, within: Tensor, generator: torch.Generator) -> Tensor:
    """Return the observed statistic, followed by that of every permutation."""
    together = samples.values @ samples.values.T
    orders = torch.cat((torch.arange(len(within)).unsqueeze(0), _permutations(within, generator)))
    arranged = weights.to(together)[:, orders].movedim(0, 1)
    return ((arranged @ together) * arranged).sum((1, 2))


def _permutations(within: Tensor, generator: torch.Generator) -> Tensor:
    """Return random permutations that keep every sample in its group, shape (999, n)."""
    keys = within + torch.rand(PERMUTATIONS, len(within), generator=generator, dtype=torch.float64)
    orders = torch.empty(keys.shape, dtype=torch.long)
    orders[:, within.argsort(stable=True)] = keys.argsort(1)
    return orders
