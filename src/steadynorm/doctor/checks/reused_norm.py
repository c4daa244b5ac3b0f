"""One batch norm that is called several times in a forward, on inputs that are not alike.

Looks at: the moments of each call's inputs, in evaluation.

Harm: the running estimates are an average over calls that differ (levels of a pyramid, time steps), and fit none of
them; each call also moves them, so they follow that many times as fast.

Remedy: one batch norm for each call with weights of its own, or shared weights and statistics of their own.

Threshold: the means of two calls are more than half a standard deviation apart, or their standard deviations by more
than a factor of e^½ (root mean square over channels), beyond three standard errors. A note; a warning where evaluation
is worse than with the batches' own statistics (as for ``train-eval-gap``), which are those of each call.

Source: mmdetection issue 6515; efficientdet-pytorch issue 53.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from steadynorm.doctor.compared import apart, cost_of, pooled
from steadynorm.doctor.evidence import Evidence, Sighting
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
APART = 0.5
_REMEDY = Remedy(advice="Give each call a batch norm of its own; weight and bias may be shared.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    assert runs is not None
    cost = cost_of(runs.score, runs.evaluation, runs.by_batch)
    severity = Severity.WARNING if cost is not None and cost.matters(runs.by_batch) else Severity.NOTE
    for norm in evidence.batch_norms:
        seen = runs.sightings.get(norm.name, ())
        calls = [[each for each in seen if each.call == call] for call in sorted({each.call for each in seen})]
        if len(calls) < 2 or norm.is_frozen:
            continue
        distance = max(
            apart(pooled(first), pooled(second), eps=norm.eps) - 3 * _error(first, second)
            for first, second in itertools.combinations(calls, 2)
        )
        if distance > APART:
            problem = (
                f"It is called {len(calls)} times in a forward, on inputs whose statistics are {distance:.2g} standard "
                "deviations apart: its running estimates fit none of them."
            )
            yield at(norm, severity, problem, _REMEDY, calls=len(calls), apart=distance)


def _error(first: list[Sighting], second: list[Sighting]) -> float:
    return math.sqrt(sum(_noise(calls) / sum(each.samples for each in calls) for calls in (first, second)))


def _noise(calls: list[Sighting]) -> float:
    known = [each.noise for each in calls if math.isfinite(each.noise)]
    return sum(known) / len(known) if known else 1.0
