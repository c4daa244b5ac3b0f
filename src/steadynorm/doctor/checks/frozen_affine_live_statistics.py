"""A layer whose weight and bias are frozen while its statistics still follow the batches.

Looks at: layers in training mode that keep running estimates and whose weight and bias both require no gradient, in a
model of which other parameters are trained.

Harm: ``requires_grad=False`` freezes γ and β alone. In training the layer goes on normalizing by the batch and moving
its running estimates, so a "frozen" backbone computes something else at every step, and ends with the statistics of the
new data. ``.eval()`` on the layer is undone by the next ``model.train()``.

Remedy: freeze the statistics as well; ``freeze_`` does so in a manner that survives ``model.train()``. Safe: it can be
undone, and evaluation stays as it is.

Threshold: none.

Source: pytorch issue 86590; pytorch-lightning issue 15062.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(
    advice="Freeze the statistics too (freeze_), so that model.train() does not wake them.", treatment="freeze"
)
_PROBLEM = (
    "Its weight and bias are frozen (requires_grad=False), but in training it still normalizes by the batch and moves "
    "its running estimates."
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.moves and norm.affine and not norm.learns:
            yield at(norm, Severity.WARNING, _PROBLEM, _REMEDY)
