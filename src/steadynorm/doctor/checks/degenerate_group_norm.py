"""Group norm with one channel in each group.

Looks at: groups and channels of nn.GroupNorm, and the number of values in each group of a sample on the batches. Also
layer norms over a single value.

Harm: with as many groups as channels each channel of each sample is normalized by itself. On vectors, or on maps of 1 x
1 after pooling, that is one number normalized by itself: the output is the bias for any input. On larger maps it is
instance norm, which removes the strength of each feature in an image: a fixed number of groups, such as 32, silently
becomes instance norm in a layer of as many channels. A network that was trained with it has adapted, so this is a note.

Remedy: fewer groups; 32, or 16 channels in a group, are what the paper uses. If you mean instance norm, use
nn.InstanceNorm.

Threshold: as many groups as channels, and more than one channel. A warning if a group of a sample has a single value. A
note on maps and on sequences of at most 64 values, and without batches; longer sequences are not reported, as in
wav2vec 2.0's first layer.

Source: Wu & He 2018 (arXiv 1803.08494); opacus issue 567.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

_REMEDY = Remedy(advice="Use fewer groups, such as 32, or 16 channels per group; or nn.InstanceNorm if intended.")
_WIDER = Remedy(advice="Let it normalize over the features: normalized_shape is their number.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    for norm in evidence.norms:
        if norm.groups == 0 and runs is not None and norm.name in runs.single:
            problem = "It normalizes each number by itself: its output is its bias for any input."
            yield at(norm, Severity.WARNING, problem, _WIDER)
        if norm.groups > 1 and norm.groups == norm.channels:
            what = f"Each of its {norm.groups} channels is a group of its own"
            if runs is None:
                problem = (
                    f"{what}: on vectors or 1 x 1 maps its output is its bias, on larger ones it is instance norm."
                )
                yield at(norm, Severity.NOTE, problem, _REMEDY, groups=norm.groups)
            elif norm.name in runs.single:
                problem = f"{what}, and has one value for a sample: its output is its bias for any input."
                yield at(norm, Severity.WARNING, problem, _REMEDY, groups=norm.groups)
            elif norm.name in runs.maps:
                problem = f"{what}: it is instance norm, which removes the strength of each feature in a sample."
                yield at(norm, Severity.NOTE, problem, _REMEDY, groups=norm.groups)
