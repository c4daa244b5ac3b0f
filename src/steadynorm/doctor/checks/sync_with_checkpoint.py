"""Synchronised batch norm under activation checkpointing.

Looks at: synchronised layers within a module that runs its forward again in the backward, and, with batches, those
whose running statistics a training step moves more often than they are called.

Harm: the second forward communicates as well. If the processes' backwards run in different orders, or one of them skips
a branch, they deadlock; and every step moves the running statistics twice.

Remedy: leave synchronised layers out of the checkpointed part, or use plain batch norm there.

Threshold: none; activation checkpointing is recognized by the flags of transformers, timm, torchvision and OpenMMLab,
by torch's CheckpointWrapper, and by calls of ``torch.utils.checkpoint`` in the methods of a module's class or in a
forward that was set on an instance; code that reads a False flag of the module counts as switched off.

Source: pytorch issues 38174 and 96136.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Leave it out of the checkpointed part, or use plain batch norm there.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    checkpointed = [module.name for module in evidence.modules if module.checkpoints]
    updates = {} if evidence.batches is None else evidence.batches.updates
    for norm in evidence.norms:
        around = [name for name in checkpointed if f"{norm.name}.".startswith(f"{name}." if name else "")]
        if "sync" in norm.kind and (around or updates.get(norm.name, 0) > 0):
            what = (around[-1] or "the model") if around and around[-1] != norm.name else "it"
            problem = f"It is synchronised, and {what} runs its forward again in the backward: processes may deadlock."
            yield at(norm, Severity.WARNING, problem, _REMEDY)
