"""Running statistics that are stored in half precision.

Looks at: the dtype of running_mean and running_var, and whether the layer trains.

Harm: an exponential average in bfloat16 or float16 stalls: an increment of momentum times the difference that is
smaller than half a unit in the last place is lost, so with momentum 0.001 the estimates stop far from the data's. The
counter stops at 256 in bfloat16. ``.half()``, ``.to(bfloat16)`` and FSDP cast buffers with the parameters.

Remedy: keep the whole layer in float32, weight and bias too: torch's kernels accept half-precision inputs to it, but no
layer with float32 statistics only. steadynorm's layers always keep statistics in float32. Safe.

Threshold: a warning if the layer trains. If it only evaluates, a warning if rounding to that dtype can move a mean by
more than a tenth of a standard deviation, as with a mean far from 0; else a note, since rounding to 8 bits changes a
gain by 0.4 % at most.

Source: pytorch issue 75478; measured with torch 2.13: in bfloat16 with momentum 0.001 a mean of 0.95 stays at 0.50.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(
    advice="Keep the layer in float32 (norm.float()), or convert_ it to one of steadynorm's.",
    treatment="float32",
)
MOVED = 0.1
"""Largest shift of a mean by rounding in evaluation, in standard deviations."""
_DIGITS = {torch.bfloat16: "2 to 3", torch.float16: "3 to 4"}


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if norm.dtype not in _DIGITS:
            continue
        stored = f"Its running statistics are stored in {str(norm.dtype).removeprefix('torch.')}"
        if norm.moves:
            problem = f"{stored}, which rounds away the small steps of an average, so they stop following the data."
            yield at(norm, Severity.WARNING, problem, _REMEDY)
        elif (moved := _rounding(norm)) > MOVED:
            problem = (
                f"{stored}, which rounds a running mean by up to {moved:.2g} standard deviations: it is far from 0."
            )
            yield at(norm, Severity.WARNING, problem, _REMEDY, rounding=moved)
        else:
            problem = f"{stored}, with {_DIGITS[norm.dtype]} digits. In evaluation that costs little."
            yield at(norm, Severity.NOTE, problem, _REMEDY)


def _rounding(norm: NormState) -> float:
    """Return half a unit in the last place of the running means in standard deviations; the largest."""
    if norm.mean is None or norm.var is None or norm.dtype is None:
        return 0.0
    unit = torch.finfo(norm.dtype).eps / 2
    return float((unit * norm.mean.abs() / (norm.var.clamp(min=0) + norm.eps).sqrt()).nan_to_num(0.0).max())
