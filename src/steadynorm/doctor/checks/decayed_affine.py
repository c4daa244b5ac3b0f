"""Weight decay on γ and β.

Looks at: the optimizer's weight decay of each batch norm's weight and bias, and by how much it shrinks them in a step:
learning rate · decay / (1 − momentum), at the largest learning rate that the optimizer shows.

Harm: disputed. γ's size can be undone by the next layer, so decay there does not regularize the function; it moves
small γ to 0 and, with the learning rate, changes how fast the network learns. Most recipes leave it off.

Remedy: ``param_groups(model, weight_decay)`` splits the parameters.

Threshold: none for a note. A warning if decay alone halves them within 150 steps: recipes are far from that (SGD at 0.1
with momentum 0.9 and decay 5e-4 takes 1,400 steps, at 0.4 it takes 350, AdamW at 1e-3 with 0.05 takes 14,000), and such
weights are lost within one epoch.

Source: He et al. 2019 (arXiv 1812.01187), section 3.1; Summers & Dinneen 2020 (arXiv 1906.03548) found decay helpful.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("optimizer",)
EXPLAINS = ("train-eval-gap", "needs-recalibration", "outlier-statistics")
FEW = 150
"""Steps within which decay alone must not halve a parameter."""
_REMEDY = Remedy(advice="Build the optimizer with steadynorm.surgery.param_groups(model, weight_decay).")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.optimizer is not None
    for norm in evidence.norms:
        prefix = f"{norm.name}." if norm.name else ""
        decay = max(evidence.optimizer.decay.get(f"{prefix}{each}", 0.0) for each in ("weight", "bias"))
        shrinks = max(evidence.optimizer.shrinks.get(f"{prefix}{each}", 0.0) for each in ("weight", "bias"))
        if decay > 0:
            steps = math.log(2) / shrinks if shrinks > 0 else math.inf
            problem = f"The optimizer decays its weight and bias by {decay:g}, which most recipes leave off."
            if steps < FEW:
                problem = (
                    f"The optimizer decays its weight and bias by {decay:g}: at its learning rate, decay alone halves "
                    f"them in {steps:.2g} steps."
                )
            yield at(
                norm, Severity.WARNING if steps < FEW else Severity.NOTE, problem, _REMEDY, decay=decay, steps=steps
            )
