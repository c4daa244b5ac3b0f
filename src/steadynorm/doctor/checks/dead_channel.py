"""Channels whose weight is 0, so that their input has no effect.

Looks at: the weight (γ) of each channel, compared with the largest of the layer.

Harm: such a channel outputs its bias for any input. Weight decay on γ causes this, and pruning does so on purpose; the
channels cost time and memory for a constant. A layer whose channels are all 0 after training blocks its input: a
residual branch whose last γ began at 0 and was never trained. If channels died after the statistics were measured, the
statistics of later layers are stale: that is a note in addition to this warning.

Remedy: prune the channels, or take weight decay off γ (``param_groups``).

Threshold: below 10⁻⁶ of the layer's largest |γ|; a note for up to half of the channels, a warning for more. Or all
exactly 0 after at least 100 batches.

Source: Liu et al. 2017 (arXiv 1708.06519), network slimming; Goyal et al. 2017 (arXiv 1706.02677): γ that begin at 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

EXPLAINS = ("train-eval-gap", "needs-recalibration", "outlier-statistics")
SMALL = 1e-6
"""Share of the layer's largest |γ|."""
TRAINED = 100
"""Batches after which a γ of 0 in every channel is no longer an initial value."""
_PRUNE = Remedy(advice="Prune them, or take weight decay off γ and β (param_groups).")
_UNTRAINED = Remedy(advice="Check that its weight is in the optimizer and gets a gradient.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.batch_norms:
        if norm.weight is None or not norm.weight.isfinite().all():
            continue
        size = norm.weight.abs()
        dead = size <= SMALL * size.max()
        if size.max() == 0:
            if (norm.batches or 0) >= TRAINED:
                problem = f"Its weight is 0 in every channel after {norm.batches} batches, so it blocks its input."
                yield at(norm, Severity.WARNING, problem, _UNTRAINED, channels=len(size), of=len(size))
        elif dead.any():
            number = int(dead.sum())
            problem = f"The weight of {number} of {len(size)} channels is 0: their output is constant for any input."
            severity = Severity.WARNING if number > len(size) / 2 else Severity.NOTE
            yield at(norm, severity, problem, _PRUNE, channels=number, of=len(size))
