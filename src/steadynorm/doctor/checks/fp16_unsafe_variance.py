"""Running statistics that float16 cannot hold.

Looks at: running_mean and running_var beyond 65,504, the largest number of float16.

Harm: ``model.half()`` turns them into infinity, and the channel's output in evaluation into its bias, whatever the
input. A variance that large also means inputs that overflow in float16.

Remedy: keep batch norms in float32 when the rest becomes half, or use bfloat16. Only you know whether the model will be
cast.

Threshold: 65,504.

Source: IEEE 754-2019, binary16; measured with torch 2.13: a variance of 1e5 becomes infinite.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

ONLY_NOTES = True
LARGEST = float(torch.finfo(torch.float16).max)
_REMEDY = Remedy(advice="Keep this layer in float32 when the model is cast to half precision, or use bfloat16.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.mean is None or norm.var is None or norm.dtype == torch.float16:
            continue
        largest = torch.maximum(norm.mean.abs(), norm.var)
        beyond = largest.isfinite() & (largest > LARGEST)
        if beyond.any():
            most = float(largest[beyond].max())
            problem = f"{int(beyond.sum())} of its running statistics, up to {most:.3g}, become infinite in float16."
            yield at(norm, Severity.NOTE, problem, _REMEDY, channels=int(beyond.sum()), largest=most)
