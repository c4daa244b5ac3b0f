"""A batch norm as the last layer of a model.

Looks at: whether the last module of a model made of nested nn.Sequential is a batch norm.

Harm: batch norm removes the scale and offset that a regression or an image needs, and restores them only for the
average of a batch; predictions depend on the rest of the batch in training. Projection heads of self-supervised methods
end in a batch norm on purpose.

Remedy: put a linear layer after it, or remove it.

Threshold: none.

Source: Lim et al. 2017 (arXiv 1707.02921), which removes batch norm from super-resolution.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
_REMEDY = Remedy(advice="Put a linear layer after it or remove it, if the scale of the outputs matters.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find it."""
    last = evidence.last_module
    norm = next((each for each in evidence.batch_norms if last and each.name == last.name), None)
    if norm is not None:
        problem = "It is the last layer, so outputs have the mean and variance of its weight and bias in every batch."
        yield at(norm, Severity.NOTE, problem, _REMEDY)
