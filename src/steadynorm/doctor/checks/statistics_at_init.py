"""Running statistics of a trained layer that are still those of a new one.

Looks at: whether running_mean is exactly 0 and running_var exactly 1 in every channel, while the layer's counter or its
weight and bias say that it has been trained. Whether one of the two is, where batches show that this is not theirs.

Harm: in evaluation the layer normalizes by numbers that come from no batch, so accuracy is near chance. Statistics are
buffers: they are lost where ``parameters()`` are saved, sent, averaged or merged in place of ``state_dict()``, where a
checkpoint without them is loaded with strict=False, and where momentum is 0.

Remedy: load them from a full checkpoint, or measure them again on a few hundred training images. Safe: the numbers
there describe no data. A frozen layer is left to you: in files of detectron its weight and bias have the statistics
in them.

Threshold: none; a batch of real numbers never gives exactly 0 and 1 in all channels. A layer that is new in every
respect is a warning where the model evaluates and batches reach it, as after keys were renamed; else a note. One of the
two alone can be so on purpose, as where a mean was folded away: there the batches' own must be an eighth of a standard
deviation off, root mean square over channels and beyond sampling. Where weight and bias are buffers, as in frozen
layers, and it is so in all of these, it is an error where the batches' own statistics score better, a note where
they do not, and a warning without a score.

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
    advice="If they are not in its weight and bias already, load the statistics that belong to these.",
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
                problem += " The layer may be one that the data never reach."
                yield at(norm, Severity.NOTE, problem, _REMEDY)
            else:
                problem += " The batches reach it, so its weights may not have been loaded either."
                yield at(norm, Severity.WARNING, problem, _REMEDY)


def _of_constants(evidence: Evidence) -> Severity:
    """Say how bad it is where all numbers are buffers: the statistics may be in its weight and bias."""
    alike = [each for each in evidence.norms if each.mean is not None and not each.affine]
    if not all(each.at_start for each in alike):
        return Severity.ERROR
    runs = evidence.batches
    if runs is None or not runs.score:
        return Severity.WARNING
    cost = cost_of(runs.score, runs.evaluation, runs.of_constants)
    return Severity.ERROR if cost is not None and cost.matters(runs.of_constants, expected=True) else Severity.NOTE


def _half(evidence: Evidence, norm: NormState) -> Iterator[Finding]:
    """Find a mean or a variance alone that is a new layer's, and not that of the batches."""
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
