"""Running statistics that move in evaluation mode.

Looks at: running_mean and running_var, and buffers of any module that are named as a mean, variance or deviation,
before and after one forward with every module in evaluation.

Harm: validation, a teacher's forward or a prediction changes the model: results depend on the order of the data, and
validation data leak into the statistics.

Remedy: look for a forward that calls batch norm with ``training=True`` or switches modes by itself. This needs a change
of the model's code.

Threshold: none; any bit.

Source: unbiased-teacher issue 47.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
_REMEDY = Remedy(advice="Look for a forward that calls it with training=True, or that switches modes by itself.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    norms = {norm.name: norm for norm in evidence.norms}
    for name in evidence.batches.moved:
        layer = norms.get(name) or evidence.by_name.get(name)
        if layer is not None:
            yield at(layer, Severity.ERROR, "A forward in evaluation moved its running statistics.", _REMEDY)
