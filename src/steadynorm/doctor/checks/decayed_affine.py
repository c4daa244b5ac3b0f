"""Weight decay on γ and β.

Looks at: the optimizer's weight decay of each batch norm's weight and bias.

Harm: disputed. γ's size can be undone by the next layer, so decay there limits no function; it moves small γ to 0 and
with the learning rate changes how fast the network learns. Most recipes leave it off.

Remedy: ``param_groups(model, weight_decay)`` splits the parameters.

Threshold: none.

Source: He et al. 2019 (arXiv 1812.01187), section 3.1; Summers & Dinneen 2020 (arXiv 1906.03548) found decay helpful.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("optimizer",)
_REMEDY = Remedy(advice="Build the optimizer with steadynorm.surgery.param_groups(model, weight_decay).")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.optimizer is not None
    for norm in evidence.norms:
        prefix = f"{norm.name}." if norm.name else ""
        decay = max(evidence.optimizer.decay.get(f"{prefix}{each}", 0.0) for each in ("weight", "bias"))
        if decay > 0:
            problem = f"The optimizer decays its weight and bias by {decay:g}, which most recipes leave off."
            yield at(norm, Severity.NOTE, problem, _REMEDY, decay=decay)
