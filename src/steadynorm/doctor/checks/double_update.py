"""Running statistics that a training step moves more often than the layer is called.

Looks at: the counters of batches before and after one forward and backward in training, compared with the calls of the
forward; and how far one call moves the running mean towards the batch's, compared with the momentum.

Harm: activation checkpointing runs a forward again in the backward, and the layer counts the batch again: the running
statistics follow twice as fast as their momentum says, 1 − (1 − m)², and noise with them. Loss and gradients are the
same, so nothing shows in training.

A norm that updates its running statistics in its own code and then calls torch's update too has the same fault.

Remedy: layers of steadynorm count a batch once under checkpointing (``convert_``), or use momentum 1 − √(1 − m).

Threshold: none.

Source: pytorch issue 96136.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
_REMEDY = Remedy(advice="Convert it to steadynorm's layer (convert_), which counts a batch once.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    for norm in evidence.norms:
        more = evidence.batches.updates.get(norm.name, 0)
        if more > 0 and (norm.training or not evidence.training):
            problem = (
                f"One training step moves its running statistics {more} time{'' if more == 1 else 's'} more than it is "
                "called: its forward runs again in the backward, or its own code updates them as well."
            )
            yield at(norm, Severity.WARNING, problem, _REMEDY, more=more)
