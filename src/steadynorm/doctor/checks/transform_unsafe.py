"""Batch norm in a model with per-sample gradients.

Looks at: batch norms that would move running statistics, in a model wrapped for per-sample gradients (Opacus's
GradSampleModule, or parameters with a ``grad_sample``), trained by Opacus's DPOptimizer, or with a method that maps
over gradients (``torch.func.vmap`` with ``grad``).

Harm: a sample's gradient depends on the rest of its batch, so the bound that differential privacy needs does not hold,
and the in-place update of the buffers has no meaning under vmap.

Remedy: freeze the batch norms (``freeze_``: each is then a fixed map per channel), or convert them to group norm.

Threshold: none.

Source: opacus issues 319 and 472; pytorch issue 85533.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Freeze it (freeze_), or convert it to group norm, before the model is wrapped.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    private = evidence.optimizer is not None and evidence.optimizer.per_sample
    if not private and not any(module.per_sample for module in evidence.modules):
        return
    for norm in evidence.batch_norms:
        if norm.training and not norm.is_frozen:
            problem = "It mixes samples in training, so per-sample gradients have no meaning."
            yield at(norm, Severity.ERROR, problem, _REMEDY)
