"""Batches of one class, or ordered by class.

Looks at: the labels of each batch compared with those of all batches.

Harm: in training the mean of such a batch is its class's mean, which batch norm subtracts, and the running statistics
swing from class to class: evaluation uses statistics that no batch had. Evaluation does not depend on the order, but a
model that adapts to its batches loses its classes.

Remedy: shuffle the training data (``shuffle=True``).

Threshold: a chi-squared test of equal shares of classes in all batches, at a false-alarm rate of 10⁻⁶, and a statistic
of 0.25 for each sample beyond chance: batches of one class have K − 1, of four classes of ten 1.5, and images in the
order of their contrast, which correlates weakly with their class, 0.18. Checked if a layer trains. Two views of the
same images, one after the other, count once, and so do up to four adjacent copies of each image, as from repeated
augmentation, unless half of the batches have only one class. At least 256 samples that all have one label, for a model
with three or more outputs that predicts it better than chance, are the beginning of data sorted by class.

Source: pytorch issue 4741's thread; Ioffe 2017 (arXiv 1702.03275), section 4.3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from steadynorm.doctor.batch_evidence import Runs
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.samples import are_two_views

NEEDS = ("batches",)
FALSE_ALARMS, UNEVEN = 1e-6, 0.25
MOST_COPIES = 4
FEWEST = 256
"""Fewest samples of one label that count, with three or more classes: a class of 99 % gives them in 8 % of cases."""
_HARM = "Batch norm in training removes their difference."
_REMEDY = Remedy(advice="Shuffle the training data (shuffle=True).")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    assert evidence.batches is not None
    labels = tuple(each for each in evidence.batches.labels if each)
    classes = tuple(each for each in evidence.batches.classes if each)
    single = sum(len(each) == 1 and sum(each.values()) > 1 for each in classes)
    if 2 * single >= len(classes):
        pass  # copies and views of one class have one class
    elif are_two_views(labels):
        classes = tuple(Counter(each[: len(each) // 2]) for each in labels)
    elif (copies := _copies(labels)) > 1:
        classes = tuple(Counter(each[::copies]) for each in labels)
    first = next((norm for norm in evidence.batch_norms if norm.training and not norm.is_frozen), None)
    if first is None or len(classes) < 2:
        return
    samples, outputs = sum(sum(each.values()) for each in classes), evidence.batches.outputs
    if samples >= FEWEST and outputs > 2 and len(set().union(*classes)) == 1 and _knows_classes(evidence.batches):
        problem = f"All {samples} samples have one label, of {outputs}: the data are sorted by class."
        yield at(first, Severity.WARNING, f"{problem} {_HARM}", _REMEDY)
        return
    statistic, freedom = _chi_squared(classes)
    if _probability(statistic, freedom) >= FALSE_ALARMS or statistic - freedom < UNEVEN * samples:
        return
    problem = (
        f"{single} of {len(classes)} batches have only one class."
        if single
        else "The classes are not distributed over the batches at random: the data are ordered."
    )
    yield at(first, Severity.WARNING, f"{problem} {_HARM}", _REMEDY)


def _knows_classes(runs: Runs) -> bool:
    """Return whether the labels are real classes that the model predicts better than chance."""
    scores = [each for each in runs.evaluation if math.isfinite(each)]
    mean = sum(scores) / len(scores) if scores else math.nan
    if runs.score == "cross-entropy":
        return mean < math.log(runs.outputs)
    return runs.score != "accuracy" or -mean > 1 / runs.outputs


def _copies(labels: Sequence[Sequence[int]]) -> int:
    """Return how many neighbours always share a label, up to four, as if each image were drawn that many times."""
    return next(
        (
            number
            for number in range(MOST_COPIES, 1, -1)
            if labels and all(label == each[at - at % number] for each in labels for at, label in enumerate(each))
        ),
        1,
    )


def _chi_squared(classes: Sequence[Mapping[int, int]]) -> tuple[float, int]:
    """Return the statistic of equal shares of classes in all batches, and its degrees of freedom."""
    total: Counter[int] = Counter()
    for each in classes:
        total.update(each)
    samples, statistic = sum(total.values()), 0.0
    for each in classes:
        size = sum(each.values())
        for label, number in total.items():
            expected = size * number / samples
            statistic += (each.get(label, 0) - expected) ** 2 / expected
    return statistic, (len(classes) - 1) * (len(total) - 1)


def _probability(statistic: float, freedom: int) -> float:
    """Return the probability of a chi-squared statistic at least this large."""
    if freedom == 0:
        return 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    probability = float(torch.special.gammaincc(half[0], half[1]))
    return 0.0 if math.isnan(probability) else probability
