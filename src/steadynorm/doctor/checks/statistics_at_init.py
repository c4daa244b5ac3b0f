"""Running statistics of a trained layer that still have their initial values.

Looks at: whether running_mean is exactly 0 and running_var exactly 1 in every channel, while the layer's counter or its
weight and bias show that it has been trained. Also whether one of the two is, if the batches' own value differs.

Harm: in evaluation the layer normalizes by values that come from no batch, so accuracy is near chance. Statistics are
buffers: they are lost when ``parameters()`` are saved, sent, averaged or merged instead of ``state_dict()``, when a
checkpoint without them is loaded with strict=False, and when momentum is 0.

Remedy: load them from a full checkpoint, or measure them again on a few hundred training images. Safe: the current
values describe no data. Decide for a frozen layer yourself: in detectron's files its weight and bias include the
statistics.

Threshold: none; real data never give exactly 0 and 1 in all channels. A layer that is new in every respect is a warning
if the model evaluates and batches reach it, as after keys were renamed; else a note. One of the two alone can be
intended, as when a mean was folded into a bias: then the batches' own value must be an eighth of a standard deviation
off, root mean square over channels and beyond sampling. If weight and bias are buffers, as in frozen layers, and all of
these layers have initial statistics, it is an error if the batches' own statistics score better, a note if they do not,
and a warning without a score.

Source: torch issues; huggingface/peft issue 1732; PFLlib issue 260; maskrcnn-benchmark issue 267.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadynorm.doctor.compared import cost_of, distance_of
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.doctor.shared import FITTING

_REMEDY = Remedy(
    advice="Load the statistics from a full state dict, or measure them on training images (recalibrate_).",
    treatment="recalibrate",
)
_FROZEN = Remedy(
    advice="If its weight and bias do not already include them, load the statistics that belong to these.",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.norms:
        if not norm.at_start:
            yield from _half(evidence, norm)
        elif norm.batches:
            why = f"though it has counted {norm.batches} batches"
            yield at(norm, Severity.ERROR, _problem(why), _REMEDY, batches=norm.batches)
        elif not norm.affine_at_start:
            problem = _problem("though its weight and bias have been trained")
            if norm.affine:
                yield at(norm, Severity.ERROR, problem, _REMEDY)
            else:
                yield at(norm, _of_constants(evidence), problem, _FROZEN)
        elif _others_moved(evidence, norm):
            problem = _problem("while those of other layers are not")
            if evidence.training or not _is_reached(evidence, norm):
                problem += " Perhaps the data never reach the layer."
                yield at(norm, Severity.NOTE, problem, _REMEDY)
            else:
                problem += " The batches reach it, so its weights may not have been loaded either."
                yield at(norm, Severity.WARNING, problem, _REMEDY)


def _of_constants(evidence: Evidence) -> Severity:
    """Return the severity if all values are buffers: weight and bias may include the statistics."""
    alike = [each for each in evidence.norms if each.mean is not None and not each.affine]
    if not all(each.at_start for each in alike):
        return Severity.ERROR
    runs = evidence.batches
    if runs is None or not runs.score:
        return Severity.WARNING
    cost = cost_of(runs.score, runs.evaluation, runs.of_constants)
    return Severity.ERROR if cost is not None and cost.matters(runs.of_constants, expected=True) else Severity.NOTE


def _half(evidence: Evidence, norm: NormState) -> Iterator[Finding]:
    """Find a mean or a variance alone that has its initial value, and not that of the batches."""
    if norm.mean is None or norm.var is None or norm.is_frozen or len(norm.mean) < 2:
        return
    known = evidence.described
    distance = distance_of(norm, () if known is None else known.sightings.get(norm.name, ()))
    if distance is None:
        return
    zero, one = not norm.mean.any(), bool((norm.var == 1).all())
    off = distance.shift if zero else distance.log_gain
    size = math.sqrt(max(0.0, float(off.square().mean()) - distance.error**2))
    if (zero or one) and size > FITTING:
        which = "mean is 0" if zero else "variance is 1"
        problem = (
            f"Its running {which} in every channel, as in a new layer, while its other running statistic is not a "
            f"new layer's, and the batches' own is {size:.2g} standard deviations off."
        )
        yield at(norm, Severity.ERROR, problem, _REMEDY, distance=size)


def _others_moved(evidence: Evidence, norm: NormState) -> bool:
    """Return whether most other layers have been trained."""
    others = [each for each in evidence.batch_norms if each.mean is not None and each is not norm]
    return not norm.is_frozen and 2 * sum(not each.at_start for each in others) > len(others)


def _is_reached(evidence: Evidence, norm: NormState) -> bool:
    return evidence.batches is not None and bool(evidence.batches.sightings.get(norm.name))


def _problem(why: str) -> str:
    return f"Its running statistics are those of a new layer, mean 0 and variance 1, {why}."
