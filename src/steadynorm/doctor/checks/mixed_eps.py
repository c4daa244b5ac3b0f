"""Layers whose eps differs from the others', where that changes what they compute.

Looks at: eps of all batch norms, and the gain 1/√(var + eps) of each channel by its own eps and by the one that most
layers have.

Harm: eps belongs to the weights it was trained with. Ported from TensorFlow (0.001) into torch's default (0.00001), or
the reverse, small channels get another gain, and the outputs drift with depth.

Remedy: set eps to what the weights were trained with. Which of the two that is, only their origin tells, so ``treat_``
takes that of most layers only where the score is better for it.

Threshold: some channel's gain differs by more than a tenth. Below that the difference is within what one training run
differs from the next. A note where the layer stands in a part of the model (a child of the root) with three batch norms
or more and one eps of at most 0.01: backbone and head may be of different origin, as in torchvision's DeepLab on
MobileNet. A larger one is a momentum in its place.

Source: Cadene/pretrained-models.pytorch issue 5; huggingface/transformers pull 19454.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadynorm.doctor.compared import usual_eps
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

CHANGE = 0.1
"""Relative change of a channel's gain that counts."""
LARGEST = 0.01
"""eps that anybody takes on purpose."""
PART = 3
"""Batch norms of a part of the model that have an eps of their own."""
_REMEDY = Remedy(advice="Set eps to the value that these weights were trained with.")
_TRY = Remedy(
    advice="Set eps to the value that these weights were trained with, such as most layers'.", treatment="eps"
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    norms = [norm for norm in evidence.batch_norms if norm.var is not None]
    usual = usual_eps(norm.eps for norm in norms)
    for norm in norms:
        assert norm.var is not None and usual is not None
        eps, var = usual, norm.var.clamp(min=0)
        if norm.eps == eps:
            continue
        change = float(((var + eps) / (var + norm.eps)).sqrt().log().abs().nan_to_num(0).max())
        if change > CHANGE:
            problem = (
                f"Its eps is {norm.eps:g} where most layers have {eps:g}, which changes the gain of a channel by "
                f"{100 * math.expm1(change):.0f} %."
            )
            part = [each.eps for each in norms if _part(each) == _part(norm)]
            meant = len(part) >= PART and len(set(part)) == 1 and norm.eps <= LARGEST
            severity = Severity.NOTE if meant else Severity.WARNING
            remedy = _REMEDY if severity is Severity.NOTE else _TRY
            yield at(norm, severity, problem, remedy, eps=norm.eps, usual=eps, change=change)


def _part(norm: NormState) -> str:
    return norm.name.partition(".")[0]
