"""A momentum that looks like another framework's.

Looks at: ``momentum`` of layers whose running statistics follow it; with batches, how far a training step moves them.

Harm: torch's momentum is the weight of the *new* batch; TensorFlow's, Keras's and most papers' is the weight of the old
estimate. 0.99 copied from there makes the running statistics those of the last batch or two; 0 never updates them; a
value outside 0 to 1 makes them diverge.

Remedy: write 1 − momentum, and 0.1 for 0 and 1, which are not decays. Safe for further training; the statistics so far
are the last batch's, so measure them again.

Threshold: above 0.5, or 0, or outside 0 to 1; or a step that moves 1 − momentum of the way, as some custom classes do.
No model library sets torch's momentum above 0.5; other frameworks' defaults are 0.9 to 0.999.

Source: Cadene/pretrained-models.pytorch issue 5; r9y9/tacotron_pytorch issue 19; Jermmy/pytorch-quantization-demo issue
17.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

SUSPECT = 0.5
"""Momentum above which it counts as a decay."""
NEAR = 0.05
"""Fraction of the momentum by which a step's share may differ from 1 − momentum."""


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if not norm.has_momentum or norm.momentum is None or not norm.tracks:
            continue
        value = norm.momentum
        if not 0 <= value <= 1:
            problem = f"Its momentum is {value:g}; outside 0 to 1 the running statistics diverge."
            yield at(norm, Severity.ERROR, problem, Remedy(advice="Set it to a weight of the new batch, such as 0.1."))
        elif value == 0:
            problem = "Its momentum is 0, so no batch moves the running statistics."
            advice = "Set it to 0.1, or freeze the layer with freeze_ if this is intended."
            yield at(norm, Severity.WARNING, problem, Remedy(advice=advice, treatment="momentum"), momentum=value)
        elif value < SUSPECT and (share := _followed(evidence, norm)) and abs(share - (1 - value)) < NEAR * value:
            problem = (
                f"A training step moves its running mean {share:.2g} of the way to the batch's: its class uses the "
                f"momentum, {value:g}, as the weight of the old value."
            )
            advice = f"Write momentum={1 - value:.6g} for this class, or weight the new batch by it as torch does."
            yield at(norm, Severity.WARNING, problem, Remedy(advice=advice), momentum=value, share=share)
        elif value > SUSPECT:
            problem = (
                f"Its momentum is {value:g}: torch weights the new batch by it, so the running statistics are those of "
                f"the last {'batch' if value > 0.9 else 'few batches'}. Other frameworks weight the old estimate."
            )
            decay = f"If {value:g} is a decay of another framework, write momentum={1 - value:.6g}."
            advice = "Set it to a weight of the new batch, such as 0.1." if value == 1 else decay
            yield at(norm, Severity.WARNING, problem, Remedy(advice=advice, treatment="momentum"), momentum=value)


def _followed(evidence: Evidence, norm: NormState) -> float | None:
    return None if evidence.batches is None else evidence.batches.followed.get(norm.name)
