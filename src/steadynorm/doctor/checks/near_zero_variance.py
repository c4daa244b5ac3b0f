"""Channels whose running variance is far below eps.

Looks at: running_var compared with eps, and with the variance of the batches if they are given.

Harm: the channel's input hardly varies on training data, so eps alone decides its gain, up to γ/√eps, some 316 with the
usual eps. This is harmless on similar data; on shifted data, where the input does vary, the gain amplifies it. Rounding
and quantisation noise are amplified in the same way. If all channels are like this (inputs scaled twice, for instance),
the layer does not normalize: its output is a small fraction of what the next layers expect.

Remedy: find what feeds the channel: a dead filter or ReLU, or a scale that is applied twice. If the input varies in the
batches, measure the statistics again (``recalibrate_``).

Threshold: a variance below a hundredth of eps, in more than a fifth of a layer's channels that have a weight. Single
dead filters are usual in trained networks and do not count. A note; a warning if as many of these channels vary in the
batches, by at least a third of the layer's usual deviation, and are amplified tenfold or more; and if nine tenths of
the channels are that small.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), the role of eps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from steadynorm.doctor.compared import described
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

BELOW = 0.01
"""Multiple of eps."""
SHARE, NEARLY_ALL = 0.2, 0.9
"""Share of a layer's channels."""
USUAL, BLOWN_UP = 1 / 3, 10.0
"""A channel's input varies above this fraction of the layer's usual deviation and this multiple of √eps."""
_REMEDY = Remedy(advice="Find what feeds them: dead filters, or an activation that is always 0.")
_SCALE = Remedy(advice="Check whether its input is scaled twice, or by far too much; or use a smaller eps.")
_MEASURE = Remedy(
    advice="Measure the statistics again on training images (recalibrate_): the data measured so far did not vary.",
    treatment="recalibrate",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    for norm in evidence.batch_norms:
        if norm.var is None or norm.at_start:
            continue
        passes = torch.ones_like(norm.var, dtype=torch.bool) if norm.weight is None else norm.weight.flatten() != 0
        small = (norm.var >= 0) & (norm.var < BELOW * norm.eps) & passes
        number, of = int(small.sum()), int(passes.sum())
        alive = int((small & _varies(evidence, norm)).sum())
        if alive > SHARE * of:
            problem = (
                f"The running variance of {alive} of {of} channels is below {BELOW:g} of eps, while their input varies "
                "in the batches as in other channels: they are amplified by up to γ/√eps."
            )
            yield at(norm, Severity.WARNING, problem, _MEASURE, channels=alive, of=of)
        elif number >= NEARLY_ALL * of > 0:
            problem = (
                f"The running variance of {number} of {of} channels is below {BELOW:g} of eps: it does not normalize: "
                "its output is less than a tenth of a standard deviation."
            )
            yield at(norm, Severity.WARNING, problem, _SCALE, channels=number, of=of)
        elif number > SHARE * of:
            problem = (
                f"The running variance of {number} of {of} channels is below {BELOW:g} of eps, so eps sets their "
                "gain; input that varies more than in training is amplified."
            )
            yield at(norm, Severity.NOTE, problem, _REMEDY, channels=number, of=of)


def _varies(evidence: Evidence, norm: NormState) -> Tensor:
    """Tell for each channel whether its input varies in the batches, relative to eps and the layer's usual channel."""
    assert norm.var is not None
    seen = () if evidence.described is None else evidence.described.sightings.get(norm.name, ())
    if not seen:
        return torch.zeros_like(norm.var, dtype=torch.bool)
    found = (described(seen).var + norm.eps).sqrt()
    return (found >= USUAL * found.median()) & (found > BLOWN_UP * math.sqrt(norm.eps))
