"""Running statistics of a few channels that are far outside the range of the batches.

Looks at: for each channel, the running variance compared with the batches' variance, and the running mean with their
mean; with those of the reference batches, if they are given: the running statistics may be far from other data.

Harm: one batch with an outlier (a corrupt image, an overflow short of infinity) raises a running variance by orders of
magnitude; an exponential average needs 1/momentum·log(size) clean batches to forget it. Until then the channel's output
is nearly its bias. A channel that was constant while statistics were measured, such as a stuck sensor, has a running
variance near 0, and is amplified when it varies.

Remedy: measure the statistics again. Safe if the batches resemble the training data.

Threshold: in a channel, a running standard deviation more than 10 times that of the batches, or less than a hundredth
of it, or a mean more than 30 of these off; in less than half of the channels, and at most twice in the median channel:
a shift of the data moves most channels together, an outlier does not. A channel whose input hardly varies counts as
having a third of the layer's usual deviation: if a filter has died, or a rare feature is absent, the batches are
unusual, not the running statistics.

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
    advice="Measure the statistics again on training images (recalibrate_), and look for the batch that caused this.",
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
