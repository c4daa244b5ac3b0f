"""Layers that are in another mode than the model.

Looks at: ``training`` of the model, of every batch norm, and of layers of one's own that keep running estimates.

Harm: a layer left in training inside a model that evaluates makes each prediction depend on the other images of its
batch, and moves its running estimates with every one. The reverse, a layer that evaluates while the model trains, is
what freezing by ``.eval()`` looks like; it is a note, because the next ``model.train()`` undoes it without a word.

Remedy: call ``model.eval()`` before predictions. A layer that is frozen on purpose: ``freeze_``. Safe.

Threshold: none.

Source: unbiased-teacher issue 47; CenterPoint issue 168.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_EVALUATE = Remedy(advice="Call model.eval() before predictions.", treatment="evaluate")
_FREEZE = Remedy(advice="If it is meant to stay so, freeze it with freeze_: the next model.train() undoes this.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if not norm.is_batch_norm and not (norm.unknown and norm.moves):
            continue
        if norm.training and not evidence.training and not norm.is_frozen:
            problem = (
                "It is in training mode though the model evaluates, so each output depends on the rest of its batch."
            )
            yield at(norm, Severity.WARNING, problem, _EVALUATE)
        elif evidence.training and not norm.training and not norm.is_frozen and norm.mean is not None:
            problem = "It evaluates while the model trains, so its running estimates stand still."
            yield at(norm, Severity.NOTE, problem, _FREEZE)
