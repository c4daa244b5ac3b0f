"""A bias that batch norm subtracts again.

Looks at: convolutions and linear layers with a bias, directly followed by a batch norm in an nn.Sequential.

Harm: none to accuracy. The bias moves the mean, which batch norm subtracts: a parameter without gradient, a useless
addition, and weight decay on a value without effect.

Remedy: ``strip_bias_`` moves it into the running mean and removes it; outputs do not change. Safe.

Threshold: none. Layers whose order only a custom forward shows are not checked.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
_REMEDY = Remedy(advice="Remove it with strip_bias_, or build the layer with bias=False.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    trained_by_batch = {norm.name: norm for norm in evidence.batch_norms if not norm.is_frozen}
    for module in evidence.modules:
        norm = trained_by_batch.get(module.following)
        if module.kind == "linear" and module.bias and norm is not None:
            problem = f"{norm.name} subtracts its bias again with the mean, so the bias does nothing in training."
            yield at(module, Severity.NOTE, problem, _REMEDY, norm=norm.name)
