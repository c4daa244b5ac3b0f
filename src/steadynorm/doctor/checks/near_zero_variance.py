"""Channels whose running variance is far below eps.

Looks at: running_var beside eps.

Harm: the channel's input hardly varies on training data, so eps alone decides its gain, up to γ/√eps, some 316 with the
usual eps. Harmless on data like those; on shifted data, where the input does vary, the gain blows it up. Rounding and
quantisation noise are amplified in the same way.

Remedy: see what feeds the channel: a dead filter or ReLU. Nothing is done by itself.

Threshold: a variance below a hundredth of eps, in more than a fifth of a layer's channels that have a weight. Single
dead filters are usual in trained networks and say nothing.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), the role of eps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
BELOW = 0.01
"""Of eps."""
SHARE = 0.2
"""Of a layer's channels."""
_REMEDY = Remedy(advice="See what feeds them: dead filters, or an activation that is always 0.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.batch_norms:
        if norm.var is None or norm.at_start:
            continue
        passes = torch.ones_like(norm.var, dtype=torch.bool) if norm.weight is None else norm.weight.flatten() != 0
        small = (norm.var >= 0) & (norm.var < BELOW * norm.eps) & passes
        number, of = int(small.sum()), int(passes.sum())
        if number > SHARE * of:
            problem = (
                f"The running variance of {number} of {of} channels is below {BELOW:g} of eps, so eps makes their "
                "gain; input that varies more than in training is blown up."
            )
            yield at(norm, Severity.NOTE, problem, _REMEDY, channels=number, of=of)
