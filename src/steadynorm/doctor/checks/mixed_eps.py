"""Layers whose eps differs from the others' enough to change their output.

Looks at: eps of all batch norms, and the gain 1/√(var + eps) of each channel with its own eps and with that of most
layers.

Harm: eps belongs to the weights it was trained with. Ported from TensorFlow (0.001) into torch's default (0.00001), or
the reverse, small channels get another gain, and the outputs drift with depth.

Remedy: set eps to the value that the weights were trained with. Only their origin tells which of the two that is, so
``treat_`` takes that of most layers only if it improves the score.

Threshold: some channel's gain differs by more than a tenth. Smaller differences are within those between training runs.
A note if the layer is in a part of the model (a child of the root) with three or more batch norms that share an eps of
at most 0.01: backbone and head may have different origins, as in torchvision's DeepLab on MobileNet. A larger eps is a
momentum in the wrong argument.

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
"""Largest eps that is plausible as intended."""
PART = 3
"""Fewest batch norms in a part of the model for which an eps of their own is plausible."""
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
