"""Batches that mix two kinds of data.

Looks at: means and variances of single samples, without their class's mean if there are labels: whether the first
quarter, half or three quarters of each batch differ from its rest in the same way (source and target, clean and noisy,
labelled and unlabelled samples concatenated), or every other sample from the rest; and whether the first layer's
samples form two clusters, by their means or, for samples of more than one value, by their variances. A table that goes
straight into a layer may have columns of two values, and is not searched for clusters.

Harm: batch norm normalizes the mixture by moments that fit neither kind, and the running statistics are the mixture's
too. In evaluation one kind comes alone, and is normalized by statistics that do not fit it.

Remedy: one forward for each kind, or a batch norm for each (domain-specific, as AdvProp's auxiliary ones). If the model
sees the same mixture in use, there is nothing to do.

Threshold: parts: beyond each of 999 random arrangements within the batches, over up to eight layers together, a
false-alarm rate of 1/1000 for a diagnosis; and the two are a fifth of a standard deviation apart beyond chance, so that
each is a tenth from the statistics of both, as for ``padding-in-statistics``. Clusters: a split in two explains 82 % of
the variance along the samples' first principal axis (64 % of a normal distribution, 75 % of a uniform one, 81 % of one
that is densest at its ends), with at least a fifth of the samples in each, half a standard deviation apart, as for
``reused-norm``. Clusters without labels may be classes, and are a note.

Source: pytorch issue 48929; FixMatch-pytorch issue 7; Xie et al. 2020 (arXiv 1911.09665), AdvProp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from steadynorm.doctor.compared import apart
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.samples import (
    Samples,
    log_variances,
    moments_of,
    samples_of,
    samples_that_vary,
    surprise,
    with_variances,
)

NEEDS = ("batches",)
APART, PARTS_APART, EXPLAINED, SMALLEST, FEWEST = 0.5, 0.2, 0.82, 0.2, 64
BEGINNINGS = {"quarters": 0.25, "halves": 0.5, "three quarters": 0.75}
RANDOM = 8
"""Random choices of samples by which chance is measured."""
_REMEDY = Remedy(advice="Run each kind through the model by itself, or give each a batch norm of its own.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    layers = samples_of(evidence, lambda norm: norm.moves)
    suspects = surprise([with_variances(each) for each in layers], _contrasts, lambda samples: samples.batch)
    parts = [
        (_beyond_chance(samples, part), words, samples)
        for samples in (layers[each] for each in suspects)
        for words, part in [_most_different(samples)]
    ]
    distance, words, samples = max(parts, key=lambda each: each[0], default=(0.0, "", None))
    if samples is not None and distance > PARTS_APART:
        problem = (
            f"{words} {distance:.2g} standard deviations from the rest: batches mix two kinds of "
            "data, and its statistics fit neither."
        )
        yield at(samples.norm, Severity.WARNING, problem, _REMEDY, distance=distance)
    elif layers and len(layers[0].batch) >= FEWEST and not _is_table(evidence, layers[0]):
        yield from _heaps(layers[0])


def _is_table(evidence: Evidence, samples: Samples) -> bool:
    """Return whether a layer's input is the batch itself, without positions; a table's columns may have two values."""
    assert evidence.batches is not None
    return samples.norm.name in evidence.batches.raw and not samples.vars.any()


def _heaps(samples: Samples) -> Iterator[Finding]:
    """Find two clusters of samples at one layer."""
    first, explained = _split(samples.values)
    varied = samples_that_vary(samples)
    if len(varied.batch) >= FEWEST and (logs := log_variances(varied)).shape[1]:
        other, more = _split(logs)
        if more > explained:
            samples, first, explained = varied, other, more
    share = float(first.double().mean())
    if explained < EXPLAINED or not SMALLEST <= share <= 1 - SMALLEST:
        return
    distance = _apart(samples, first)
    if distance > APART:
        problem = (
            f"Its samples form two clusters, {distance:.2g} standard deviations apart: batches mix two kinds of "
            "data, and its statistics fit neither."
        )
        severity = Severity.WARNING if samples.labelled else Severity.NOTE
        yield at(samples.norm, severity, problem, _REMEDY, distance=distance, share=share, explained=explained)


def _parts(samples: Samples) -> dict[str, Tensor]:
    """Choose the beginnings of all batches, and every other sample; without labels these may be alternating classes."""
    first = {f"The first {part} of the batches are": samples.place < share for part, share in BEGINNINGS.items()}
    return first | {"Every other sample is": samples.odd} if samples.labelled else first


def _most_different(samples: Samples) -> tuple[str, Tensor]:
    """Return the choice with the largest contrast in the samples' values without their classes' means."""
    sizes = (_contrasts(samples) @ with_variances(samples).values).norm(dim=1)
    return list(_parts(samples).items())[int(sizes.argmax())]


def _contrasts(samples: Samples) -> Tensor:
    """Return the contrasts of each choice with the rest, each of length 1, shape (k, n)."""
    chosen = torch.stack(list(_parts(samples).values())).double()
    others = 1 - chosen
    contrasts = chosen / chosen.sum(1, keepdim=True).clamp(min=1) - others / others.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(contrasts)


def _beyond_chance(samples: Samples, chosen: Tensor) -> float:
    """Return the distance of the chosen samples from the rest, minus the average for random choices of equal size."""
    if not 1 < int(chosen.sum()) < len(chosen) - 1:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(chosen), generator=generator) for _ in range(RANDOM)]
    chance = sum(_apart(samples, chosen[order]) ** 2 for order in orders) / RANDOM
    return math.sqrt(max(0.0, _apart(samples, chosen) ** 2 - chance))


def _apart(samples: Samples, chosen: Tensor) -> float:
    return apart(moments_of(samples, chosen), moments_of(samples, ~chosen), eps=samples.norm.eps)


def _split(values: Tensor) -> tuple[Tensor, float]:
    """Split samples in two along their first principal axis to explain most of its variance; return the share too."""
    centred = values - values.mean(0)
    along = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
    ordered, order = along.sort()
    number = len(ordered)
    below = torch.arange(1, number, dtype=ordered.dtype)
    sums = ordered.cumsum(0)[:-1]
    between = (sums / below - (ordered.sum() - sums) / (number - below)).square() * below * (number - below) / number
    best = int(between.argmax())
    first = torch.zeros(number, dtype=torch.bool)
    first[order[: best + 1]] = True
    return first, float(between[best] / (ordered - ordered.mean()).square().sum())
