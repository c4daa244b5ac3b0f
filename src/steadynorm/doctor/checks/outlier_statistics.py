"""Running statistics of a few channels that lie far beyond everything the batches show.

Looks at: for each channel, running variance beside the batches' variance, and running mean beside their mean; beside
those of the reference batches, where they are given: of other data the running statistics may be far off.

Harm: one batch with an outlier (a corrupt image, an overflow short of infinity) raises a running variance by orders of
magnitude; an exponential average needs 1/momentum·log(size) clean batches to forget it. Until then the channel gives
nearly its bias. A channel that was constant while statistics were measured, such as a stuck sensor, has a running
variance near 0, and is amplified when it varies.

Remedy: measure the statistics again. Safe where the batches are like the training data.

Threshold: a standard deviation more than 10 times that of the batches in a channel, or less than a hundredth of it, or
a mean more than 30 of them off; in less than half of the channels, and no more than twice in the median channel: a
shift of the data moves most channels together, an outlier does not. A channel whose input hardly varies counts as one
of a third of the layer's usual deviation: where a filter has died, or a rare feature is absent, the batches are unusual
and not the estimates.

Source: pytorch issue 90342.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadynorm.doctor.compared import distance_of
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
FACTOR, FAR, AWAY, USUAL, LEAST = 10.0, 100.0, 30.0, 2.0, 1 / 3
_REMEDY = Remedy(
    advice="Measure the statistics again on training images (recalibrate_), and look for the batch that did it.",
    treatment="recalibrate",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    known = evidence.described
    assert known is not None
    for norm in evidence.batch_norms:
        distance = distance_of(norm, known.sightings.get(norm.name, ()))
        if distance is None or norm.at_start:
            continue
        assert norm.var is not None
        running = (norm.var + norm.eps).sqrt()
        found = running * distance.log_gain.exp()
        found = found.clamp(min=LEAST * float(found.median()))
        ratio = running / found
        beyond = (ratio > FACTOR) | (ratio < 1 / FAR) | (distance.shift.abs() * ratio > AWAY)
        usual = abs(float(distance.log_gain.median())) < math.log(USUAL)
        if usual and 0 < 2 * int(beyond.sum()) < len(ratio):
            furthest = float(ratio[beyond][ratio[beyond].log().abs().argmax()])
            problem = (
                f"The running standard deviation of {int(beyond.sum())} of {len(ratio)} channels is up to "
                f"{furthest:.3g} times that of the batches, while the other channels agree."
            )
            yield at(
                norm,
                Severity.WARNING,
                problem,
                _REMEDY,
                channels=int(beyond.sum()),
                of=len(ratio),
                ratio=furthest,
            )
