"""Group norm with one channel in each group.

Looks at: groups and channels of nn.GroupNorm, and how many values each group of a sample has on the batches. Layer
norms over a single value likewise.

Harm: with as many groups as channels each channel of each sample is normalized by itself. On vectors, or on maps of
1 x 1 after pooling, that is one number normalized by itself: the output is the bias for any input. On larger maps
it is instance norm, which takes away how strong each feature is in an image: a fixed number of groups, 32 say, that
meets a layer of as many channels becomes one unnoticed. A network that was trained with it is used to that, so this
is a note.

Remedy: fewer groups; 32, or 16 channels in a group, are what the paper uses. Where instance norm is meant,
nn.InstanceNorm says so.

Threshold: as many groups as channels, and more than one channel. A warning where a group of a sample has a single
value. A note on maps and on sequences of at most 64 values, and without batches; longer sequences are let pass, as in
wav2vec 2.0's first layer.

Source: Wu & He 2018 (arXiv 1803.08494); opacus issue 567.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Use fewer groups, such as 32, or 16 channels in each; or nn.InstanceNorm if that is meant.")
_WIDER = Remedy(advice="Let it normalize over the features: normalized_shape is their number.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    for norm in evidence.norms:
        if norm.groups == 0 and runs is not None and norm.name in runs.single:
            problem = "It normalizes each number by itself: its output is its bias, whatever comes in."
            yield at(norm, Severity.WARNING, problem, _WIDER)
        if norm.groups > 1 and norm.groups == norm.channels:
            what = f"Each of its {norm.groups} channels is a group of its own"
            if runs is None:
                problem = (
                    f"{what}: on vectors or 1 x 1 maps its output is its bias, on larger ones it is instance norm."
                )
                yield at(norm, Severity.NOTE, problem, _REMEDY, groups=norm.groups)
            elif norm.name in runs.single:
                problem = f"{what}, and has one value for a sample: its output is its bias, whatever comes in."
                yield at(norm, Severity.WARNING, problem, _REMEDY, groups=norm.groups)
            elif norm.name in runs.maps:
                problem = f"{what}: it is instance norm, which takes away how strong each feature of a sample is."
                yield at(norm, Severity.NOTE, problem, _REMEDY, groups=norm.groups)
