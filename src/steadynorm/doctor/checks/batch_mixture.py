"""Batches that are put together from two kinds of data.

Looks at: single samples' moments, with each class's mean taken away where there are labels: whether the first halves of
the batches differ from the second halves in the same manner again and again (source and target, clean and adversarial,
labelled and unlabelled samples one behind the other), and whether the first layer's samples fall into two heaps.

Harm: batch norm normalizes the mixture, by moments that fit neither kind, and the running estimates are the mixture's
too. In evaluation one kind comes alone, and is normalized by what it never had.

Remedy: one forward for each kind, or a batch norm for each (domain-specific, as AdvProp's auxiliary ones). Where the
mixture is what the model meets in use, there is nothing to do.

Threshold: halves: beyond each of 999 random arrangements within the batches, over up to eight layers together, a
false-alarm rate of 1/1000 for a diagnosis. Heaps: a split in two explains 85 % of the variance along the samples' first
principal axis (64 % of a normal distribution, 75 % of a uniform one, 81 % of one that is densest at its ends), with at
least a fifth of the samples in each. And the two are half a standard deviation apart, as for ``reused-norm``. Heaps
without labels may be classes, and are a note.

Source: pytorch issue 48929; FixMatch-pytorch issue 7; Xie et al. 2020 (arXiv 1911.09665), AdvProp.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from steadynorm.doctor.compared import apart
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.samples import Samples, moments_of, samples_of, surprise

NEEDS = ("batches",)
APART, EXPLAINED, SMALLEST, FEWEST = 0.5, 0.85, 0.2, 64
_REMEDY = Remedy(advice="Run each kind through the model by itself, or give each a batch norm of its own.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    layers = samples_of(evidence, lambda norm: norm.moves)
    halves = {
        each: distance
        for each in surprise(layers, _halves, lambda samples: samples.batch)
        if (distance := _apart(layers[each], layers[each].place < 0.5)) > APART
    }
    if halves:
        first = max(halves, key=lambda each: halves[each])
        problem = (
            f"The first halves of the batches are {halves[first]:.2g} standard deviations from the second halves: "
            "they are put together from two kinds of data, and its statistics fit neither."
        )
        yield at(layers[first].norm, Severity.WARNING, problem, _REMEDY, distance=halves[first])
    elif layers and len(layers[0].batch) >= FEWEST:
        yield from _heaps(layers[0])


def _heaps(samples: Samples) -> Iterator[Finding]:
    """Find two heaps of samples at one layer."""
    first, explained = _split(samples.values)
    share = float(first.double().mean())
    if explained < EXPLAINED or not SMALLEST <= share <= 1 - SMALLEST:
        return
    distance = _apart(samples, first)
    if distance > APART:
        problem = (
            f"Its samples fall into two heaps, {distance:.2g} standard deviations apart: batches mix two kinds of "
            "data, and its statistics fit neither."
        )
        severity = Severity.WARNING if samples.labelled else Severity.NOTE
        yield at(samples.norm, severity, problem, _REMEDY, distance=distance, share=share, explained=explained)


def _halves(samples: Samples) -> Tensor:
    """Give the contrast of the first halves of all batches with their second halves."""
    first = (samples.place < 0.5).double()
    return (first / first.sum().clamp(min=1) - (1 - first) / (1 - first).sum().clamp(min=1)).unsqueeze(0)


def _apart(samples: Samples, chosen: Tensor) -> float:
    return apart(moments_of(samples, chosen), moments_of(samples, ~chosen), eps=samples.norm.eps)


def _split(values: Tensor) -> tuple[Tensor, float]:
    """Split samples in two along their first principal axis so that most of its variance is explained; say how much."""
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
