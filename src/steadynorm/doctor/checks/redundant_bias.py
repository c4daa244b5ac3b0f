"""A bias that batch norm subtracts again.

Looks at: convolutions and linear layers with a bias that a batch norm follows directly in an nn.Sequential.

Harm: none to accuracy. The bias moves the mean, which batch norm subtracts: a parameter without gradient, a useless
addition, and weight decay on a value without effect.

Remedy: ``strip_bias_`` moves it into the running mean and takes it away; outputs stay as they are. Safe.

Threshold: none. Layers whose order is only told by a forward of their own are not looked at.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
_REMEDY = Remedy(advice="Take it away with strip_bias_, or build the layer with bias=False.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    trained_by_batch = {norm.name: norm for norm in evidence.batch_norms if not norm.is_frozen}
    for module in evidence.modules:
        norm = trained_by_batch.get(module.following)
        if module.kind == "linear" and module.bias and norm is not None:
            problem = f"Its bias is subtracted again with the mean by {norm.name}, so it does nothing in training."
            yield at(module, Severity.NOTE, problem, _REMEDY, norm=norm.name)
