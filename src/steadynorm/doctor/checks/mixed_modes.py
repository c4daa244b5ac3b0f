"""Layers that are in a different mode from the model.

Looks at: ``training`` of the model, of every batch norm, and of custom layers with running statistics.

Harm: a layer left in training mode in a model that evaluates makes each prediction depend on the other images of its
batch, and moves its running statistics with every forward. The reverse, a layer that evaluates while the model trains,
is what freezing by ``.eval()`` looks like; it is a note, because the next ``model.train()`` silently undoes it. A few
layers that evaluate and learn among many that train were forgotten: their weights change, their statistics do not.

Remedy: call ``model.eval()`` before predictions. A layer that is frozen on purpose: ``freeze_``. Safe.

Threshold: none. A layer that evaluates while the model trains is a warning if it learns, at most two layers do so, and
at least four times as many train.

Source: unbiased-teacher issue 47; CenterPoint issue 168.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

FEW = 2
_EVALUATE = Remedy(advice="Call model.eval() before predictions.", treatment="evaluate")
_TRAIN = Remedy(advice="Call model.train() before training continues; freeze_ the layer if this is intended.")
_FREEZE = Remedy(advice="If this is intended, freeze it with freeze_: the next model.train() undoes the mode.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    still = [norm for norm in evidence.batch_norms if _stands_still(norm)]
    forgotten = len(still) <= FEW and 4 * len(still) <= sum(norm.moves for norm in evidence.batch_norms)
    for norm in evidence.norms:
        if not norm.is_batch_norm and not (norm.unknown and norm.moves):
            continue
        if norm.training and not evidence.training and not norm.is_frozen:
            problem = (
                "It is in training mode though the model evaluates, so each output depends on the rest of its batch."
            )
            yield at(norm, Severity.WARNING, problem, _EVALUATE)
        elif evidence.training and _stands_still(norm):
            problem = "It evaluates while the model trains, so its running statistics do not move."
            severity, remedy = Severity.NOTE, _FREEZE
            if forgotten and norm.learns:
                severity, remedy = Severity.WARNING, _TRAIN
                problem = f"{problem} Almost all others train, and its weight and bias learn: it was forgotten."
            yield at(norm, severity, problem, remedy)


def _stands_still(norm: NormState) -> bool:
    return not norm.training and not norm.is_frozen and norm.mean is not None
