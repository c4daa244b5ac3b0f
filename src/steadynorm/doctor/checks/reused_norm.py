"""A batch norm that is called several times in a forward, on inputs with different statistics.

Looks at: the moments of each call's inputs, in evaluation.

Harm: the running statistics are an average over calls that differ (levels of a pyramid, time steps), and fit none of
them; each call also updates them, so they follow the batches that many times as fast.

Remedy: one batch norm for each call, or shared weight and bias with separate statistics.

Threshold: the means of two calls are more than half a standard deviation apart, or their standard deviations by more
than a factor of e^½ (root mean square over channels), beyond three standard errors. A note; a warning if statistics
measured now, over all calls, still give a worse evaluation than each call's own statistics, beyond chance as for
``train-eval-gap`` and by a fifth. A pyramid whose levels share a head by design lost up to a tenth. Also a warning if
the layer is called more often than any convolution or linear layer: its inputs come from different weights each time,
and no architecture shares a norm alone.

Source: mmdetection issue 6515; efficientdet-pytorch issue 53.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.compared import cost_of
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.shared import shared_by

NEEDS = ("batches",)
SHARE = 0.2
"""Fraction of the score lost by sharing alone that makes it a warning."""
_REMEDY = Remedy(advice="Give each call a batch norm of its own; weight and bias may be shared.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    assert runs is not None
    own = runs.by_batch[1::2]
    cost = cost_of(runs.score, runs.recalibrated, own)
    severity = Severity.WARNING if cost is not None and cost.matters(own, SHARE) else Severity.NOTE
    for norm in evidence.batch_norms:
        calls, distance = shared_by(norm, runs.sightings.get(norm.name, ()))
        if distance:
            alone = 0 < runs.linear_calls < calls
            problem = (
                f"It is called {calls} times in a forward, on inputs whose statistics are {distance:.2g} standard "
                "deviations apart: its running statistics fit none of them."
            )
            yield at(norm, Severity.WARNING if alone else severity, problem, _REMEDY, calls=calls, apart=distance)
