"""A layer whose weight and bias are frozen while its statistics still follow the batches.

Looks at: layers in training mode that keep running statistics and whose weight and bias both require no gradient, in a
model with other parameters that are trained. With an optimizer, those that it leaves out, or moves at a rate of 0, with
the linear layer before them.

Harm: ``requires_grad=False`` freezes γ and β alone. In training the layer still normalizes by the batch and moves its
running statistics, so a "frozen" backbone computes something else at every step, and ends with the statistics of the
new data. ``.eval()`` on the layer is undone by the next ``model.train()``.

Remedy: freeze the statistics as well; ``freeze_`` does so in a way that survives ``model.train()``. Safe: it can be
undone, and evaluation does not change.

Threshold: none. A note in a frozen copy whose weights are close to those of a part that learns, but not the same:
target networks and averaged weights follow the original, and many normalize by the batch on purpose (BYOL, MoCo).

Source: pytorch issue 86590; pytorch-lightning issue 15062.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(
    advice="Freeze the statistics too (freeze_), so that model.train() does not restart them.", treatment="freeze"
)
_PROBLEM = (
    "Its weight and bias are frozen ({}), but in training it still normalizes by the batch and moves "
    "its running statistics."
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    left_out, followers = set(_left_out(evidence)), _followers(evidence)
    for norm in evidence.norms:
        if norm.moves and norm.affine and not norm.learns:
            severity = Severity.NOTE if norm.name in followers else Severity.WARNING
            yield at(norm, severity, _PROBLEM.format("requires_grad=False"), _REMEDY)
        elif norm.moves and norm.name in left_out:
            yield at(norm, Severity.WARNING, _PROBLEM.format("the optimizer does not move them"), _REMEDY)


def _followers(evidence: Evidence) -> set[str]:
    """Name the norms of frozen copies whose weights differ from the original's: they follow it step by step."""
    return {name for twins in evidence.twins if twins.frozen and twins.weights for pair in twins.norms for name in pair}


def _left_out(evidence: Evidence) -> Iterator[str]:
    """Name the norms that the optimizer leaves out with the linear layer before them, while it moves other weights.

    If it moves the weights and not the norms, or the reverse, a second optimizer has the rest.
    """
    if evidence.optimizer is None:
        return
    moved = evidence.optimizer.moved
    if not any(f"{each.name}.weight" in moved for each in evidence.modules if each.kind == "linear"):
        return
    norms = {norm.name for norm in evidence.norms if norm.affine}
    before_moves = False
    for module in evidence.modules:
        if module.kind == "linear":
            before_moves = f"{module.name}.weight" in moved
        elif module.name in norms and not before_moves:
            own = (f"{module.name}.{each}" for each in ("weight", "bias"))
            if not any(name in moved for name in own):
                yield module.name
