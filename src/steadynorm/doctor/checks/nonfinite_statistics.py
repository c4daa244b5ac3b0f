"""Running statistics that are NaN or infinite.

Looks at: running_mean and running_var of every layer that has them.

Harm: every output in evaluation stays NaN: an exponential average never forgets NaN or infinity, however many clean
batches follow. Training looks healthy, since it normalizes by the batch. One overflow is enough; a gradient scaler
skips the optimizer's step for such a batch, but not the update of the running statistics.

Remedy: set the corrupted channels to the statistics of healthy batches, or to mean 0 and variance 1 without batches;
the others keep theirs. Layers of steadynorm skip such batches with ``nonfinite="skip"``. Safe: the corrupted values
have no meaning.

Threshold: none.

Source: pytorch issues 90342 and 88474.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Repair these channels (repair_statistics_), with batches if you have any.", treatment="repair")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.mean is None or norm.var is None:
            continue
        broken = ~(norm.mean.isfinite() & norm.var.isfinite())
        if broken.any():
            number, of = int(broken.sum()), len(broken)
            problem = (
                f"The running statistics of {number} of {of} channels are NaN or infinite. So is every output in "
                "evaluation, and no further batch repairs that."
            )
            yield at(norm, Severity.ERROR, problem, _REMEDY, channels=number, of=of)
