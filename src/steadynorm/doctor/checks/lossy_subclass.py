"""A subclass of batch norm that torch's own conversion would strip.

Looks at: batch norms that run more than batch norm does (an activation, as in timm's BatchNormAct2d), and subclasses
whose computation is unknown.

Harm: ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` rebuilds every subclass from five attributes and drops the rest
silently: the activation is lost, and the network computes something else.

Remedy: convert with ``steadynorm.surgery.convert_``, which keeps what runs after the norm, or with the package's own
converter. For an unknown subclass, declare what it computes with ``steadynorm.surgery.register``.

Threshold: none.

Source: pytorch issue 187298; pytorch-image-models issue 1254.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
_CONVERT = Remedy(advice="Convert with steadynorm.surgery.convert_ and not with torch's convert_sync_batchnorm.")
_REGISTER = Remedy(advice="Register what it computes (steadynorm.surgery.register), so that the checks can read it.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.tail:
            problem = f"It also runs {', '.join(norm.tail)}, which torch's convert_sync_batchnorm would drop."
            yield at(norm, Severity.NOTE, problem, _CONVERT)
        elif norm.unknown:
            yield at(norm, Severity.NOTE, f"Its computation is unknown: {norm.unknown}", _REGISTER)
