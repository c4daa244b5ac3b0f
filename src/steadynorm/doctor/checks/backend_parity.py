"""A norm whose output is not what its formula says.

Looks at: the output of each norm in evaluation (batch norms by their running statistics; group and layer norms) beside
the formula in float64, on the same input; as the model runs it, with its hooks, and on a GPU without cuDNN. A layer of
one's own that keeps running statistics is to evaluate as it trains: given a batch's moments as running statistics, both
modes are to give the same, whatever else it does; and where half of its channels or more are batch norm's, all are to
be. Models that are compiled are looked at uncompiled, and layers that
take a residual or train are left out.

Harm: a wrong kernel, a replaced method or a wrapper changes the network, and no metric of training shows it where the
same device trains and evaluates.

Remedy: fix the layer's own forward; or switch the backend off (``torch.backends``), use another version of torch, or
find who replaces the forward.

Threshold: 16 units in the last place of the terms (|x| + |mean|)·scale + |shift|, in the coarsest dtype that takes
part. An error below a hundredth of the output's root mean square is a note. A layer of one's own, or whose forward is
replaced, may differ by a hundredth, and one with hooks by a twentieth, which rounds to eight bits; an activation behind
the norm is none.

Source: pytorch issues 181696 and 175189.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
SMALL = 0.01
_REMEDY = Remedy(advice="Switch this backend off (torch.backends), or see who replaces the layer's computation.")
_OWN = Remedy(advice="Fix its forward in evaluation: (x - running_mean) / sqrt(running_var + eps) * weight + bias.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    for norm in evidence.norms:
        found = evidence.batches.parity.get(norm.name)
        if found is None or found.error == found.other_backend == 0:
            continue
        here = found.error > 0
        error = found.error if here else found.other_backend
        where = "" if here else " without cuDNN, and right with it"
        problem = f"Its output in evaluation is off from the formula by {error:.2g} of its size{where}."
        if norm.unknown:
            problem = (
                "In evaluation it does not do what it does in training, or its class: its output is off by "
                f"{error:.2g} of its size."
            )
        severity = Severity.WARNING if here and error > SMALL else Severity.NOTE
        yield at(norm, severity, problem, _OWN if norm.unknown else _REMEDY, error=error)
