"""A batch norm as the last layer of a model.

Looks at: whether the last module of a model that is an nn.Sequential, all the way down, is a batch norm.

Harm: batch norm takes away the scale and the offset that a regression or an image must have, and brings them back for
the average of a batch only; predictions depend on the rest of the batch in training. Projection heads of
self-supervised methods end in a batch norm on purpose.

Remedy: put a linear layer after it, or take it away.

Threshold: none.

Source: Lim et al. 2017 (arXiv 1707.02921), which takes batch norm out of super-resolution.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
_REMEDY = Remedy(advice="Put a linear layer after it or take it away, if outputs have a scale that matters.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    last = evidence.last_module
    norm = next((each for each in evidence.batch_norms if last and each.name == last.name), None)
    if norm is not None:
        problem = "It is the last layer, so outputs have the mean and variance of its weight and bias in every batch."
        yield at(norm, Severity.NOTE, problem, _REMEDY)
