"""Synchronised batch norm in a model that evaluates.

Looks at: layers of a synchronised kind in a model in evaluation mode.

Harm: evaluation needs no other process, but exporters, quantisers and fusion do not know the class, and older versions
of torch reject it on a CPU.

Remedy: convert them to plain batch norms (``from_sync_``), which keeps every value. Safe.

Threshold: none.

Source: pytorch issue 41081; mmsegmentation issue 387.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
_REMEDY = Remedy(advice="Convert them to plain batch norms with from_sync_ before export.", treatment="from_sync")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    if evidence.training:
        return
    for norm in evidence.norms:
        if "sync" in norm.kind:
            problem = (
                "It is a synchronised layer in a model that evaluates; exporters and fusion do not know its class."
            )
            yield at(norm, Severity.NOTE, problem, _REMEDY)
