"""A norm whose output differs from its formula.

Looks at: the output of each norm in evaluation (batch norms by their running statistics; group and layer norms)
compared with the formula in float64, on the same input; as the model runs it, with its hooks, and on a GPU without
cuDNN. A custom layer with running statistics must evaluate as it trains: with a batch's moments as running statistics,
both modes must give the same output; and if at least half of its channels match batch norm, all must. Compiled models
are checked uncompiled. Layers that take a residual or train are left out.

Harm: a wrong kernel, a replaced method or a wrapper changes the network, and no training metric shows it if the same
device trains and evaluates.

Remedy: fix the layer's own forward; or switch the backend off (``torch.backends``), use another version of torch, or
find the code that replaces the forward.

Threshold: 16 units in the last place of the terms (|x| + |mean|)·scale + |shift|, in the coarsest dtype involved. An
error below a hundredth of the output's root mean square is a note. A custom layer, or one whose forward is replaced,
may differ by a hundredth, and one with hooks by a twentieth, which allows rounding to eight bits; an activation after
the norm does not count as an error.

Source: pytorch issues 181696 and 175189.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
SMALL = 0.01
_REMEDY = Remedy(advice="Switch this backend off (torch.backends), or find what replaces the layer's forward.")
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
        where = "" if here else " without cuDNN, and correct with it"
        problem = f"Its output in evaluation differs from the formula by {error:.2g} of its size{where}."
        if norm.unknown:
            problem = (
                "In evaluation its computation differs from that in training, or from its class: its output is off by "
                f"{error:.2g} of its size."
            )
        severity = Severity.WARNING if here and error > SMALL else Severity.NOTE
        yield at(norm, severity, problem, _OWN if norm.unknown else _REMEDY, error=error)
