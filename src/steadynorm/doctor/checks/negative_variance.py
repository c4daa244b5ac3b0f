"""A running variance below zero.

Looks at: running_var.

Harm: the square root in evaluation gives NaN where var + eps < 0, and a wrong gain where it is not. Causes: averages of
weights that extrapolate, quantised buffers, and E[x²] − E[x]² in low precision.

Remedy: set these channels to the statistics of healthy batches, or to variance 1 without batches. Safe: a negative
variance has no meaning.

Threshold: none.

Source: torch.nn.functional.batch_norm gives NaN; measured with torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Repair these channels (repair_statistics_), with batches if you have any.", treatment="repair")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.var is None or not (norm.var < 0).any():
            continue
        number, of = int((norm.var < 0).sum()), len(norm.var)
        problem = (
            f"The running variance of {number} of {of} channels is negative (down to {float(norm.var.min()):.3g}), "
            "which gives NaN or a wrong gain in evaluation."
        )
        yield at(norm, Severity.ERROR, problem, _REMEDY, channels=number, of=of, least=float(norm.var.min()))
