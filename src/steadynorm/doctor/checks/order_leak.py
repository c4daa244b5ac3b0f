"""Batches that are not drawn at random from the data.

Looks at: the means of single samples at up to eight layers, without their class's mean if there are labels, and whether
those of one batch are more alike than those of different batches.

Harm: if a batch comes from one video, patient or other source, its statistics are those of that source and reveal what
the samples have in common. Training removes this information, or learns to use it; evaluation with running statistics
does not have it. Training loss falls and validation loss does not; test accuracy depends on the order.

Remedy: shuffle the training data (``shuffle=True``), also across workers. If the task needs an order (contrastive
pairs), shuffle the input of batch norm, or use a norm that does not mix samples.

Threshold: the batches' means vary more than in each of 999 random arrangements of the same samples, over all layers
together: a false-alarm rate of 1/1000 for a diagnosis. And at least twice as much as by chance. Checked if a layer
trains. Unequal classes are ``single-class-batch``. If the second half of each batch has the labels of the first, it
counts as a second view of the same images, and only the first half is checked. Not checked if labels are shares of
classes: mixup and cutmix give all samples of a batch the same share, so those of one batch are alike.

Source: moco issue 137; warpem/miss-alignment issue 6; Anderson 2001, "A new method for non-parametric multivariate
analysis of variance".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.samples import Samples, are_two_views, first_views, samples_of, surprise

NEEDS = ("batches",)
FACTOR = 2.0
FEWEST = 4
"""Batches."""
_REMEDY = Remedy(advice="Shuffle the training data (shuffle=True), so that a batch mixes samples from all sources.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    assert evidence.batches is not None
    if evidence.batches.batches < FEWEST or evidence.batches.mixed:
        return
    layers = samples_of(evidence, lambda norm: norm.moves)
    if are_two_views(evidence.batches.labels):
        layers = [first_views(each) for each in layers]
    found = {each: ratio for each, ratio in surprise(layers, _batch_means, _anywhere).items() if ratio > FACTOR}
    if found:
        first = max(found, key=lambda each: found[each])
        problem = (
            f"The means of its batches vary {found[first]:.2g} times as much as those of batches drawn at random: "
            "consecutive samples are alike."
        )
        yield at(layers[first].norm, Severity.WARNING, problem, _REMEDY, ratio=found[first])


def _batch_means(samples: Samples) -> Tensor:
    """Return contrasts of each batch's mean with the overall mean; their squares sum to the variation of batches."""
    each = torch.stack([(samples.batch == batch).double() for batch in sorted(set(samples.batch.tolist()))])
    size = each.sum(1, keepdim=True)
    return (each / size - 1 / len(samples.batch)) * size.sqrt()


def _anywhere(samples: Samples) -> Tensor:
    return torch.zeros_like(samples.batch)
