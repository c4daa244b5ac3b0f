"""A norm whose channels are not on the axis that it takes for theirs.

Looks at: the feature axis of each layer's input, followed from linear layers, embeddings and layer norms (last axis)
and convolutions (axis 1) through activations, transpositions and changes of shape; and images or signals that reach a
layer with their colours or sensors last.

Harm: batch norm always takes axis 1 as channels. Given (N, L, C) it normalizes every time step over the features, with
running statistics of time steps. If L differs from C, torch raises an error, unless the layer is built for L; if they
are equal, nothing does. A map (N, C, L) that is reshaped to (N·L, C) without moving C to the end first has the right
size, but every channel mixes values of all features. Group norm takes axis 1 as well, and layer norm the last: if the
features are on another axis of the same size, nothing fails. A map that is flattened with its channels, normalized and
reshaped to a map again has statistics for each position, from only as many values as there are samples, and the
convolution is no longer translation-equivariant.

Remedy: transpose to (N, C, L) before the layer and back after it, or flatten to (N·L, C). Only you can, in the model's
code.

Threshold: none for the axis, which is followed and not guessed. Colours last: 4 values or fewer on the last axis, more
on axis 1. Group and layer norm: both axes of one size.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), section 3.2; pytorch issue 76613; deepnet issue 11;
self-critical.pytorch issue 44.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.axes import CUT
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
COLOURS = 4
_REMEDY = Remedy(advice="Transpose so that the features are on axis 1, as (N, C, L), or flatten to (N·L, C).")

_FLAT = Remedy(advice="Give it the map (BatchNorm2d of its channels): a convolution's places share their statistics.")
_OTHER = Remedy(advice="Transpose before it and back behind it: group norm takes axis 1, layer norm the last.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    assert runs is not None
    for norm in evidence.batch_norms:
        seen = runs.sightings.get(norm.name, ())
        if not seen:
            continue
        shape = seen[0].shape
        axis = runs.axes.get(norm.name)
        given = f"It is given {shape}"
        if axis == CUT:
            problem = (
                f"{given}, cut out of a map without moving its features to the end first: each channel has of all."
            )
            yield at(norm, Severity.WARNING, problem, _REMEDY)
        elif axis is not None and axis < len(shape):
            problem = f"{given} with features on axis {axis}, and normalizes axis 1 as if they were there."
            yield at(norm, Severity.WARNING, problem, _REMEDY, axis=axis)
        elif norm.name in runs.flattened:
            channels = runs.flattened[norm.name]
            problem = (
                f"{given}, a map of {channels} channels whose places are flattened with them, and is made a map again: "
                "each place has statistics of its own."
            )
            yield at(norm, Severity.WARNING, problem, _FLAT, channels=channels)
        elif norm.name in runs.raw and len(shape) in (3, 4) and shape[-1] <= COLOURS < shape[1]:
            what = "images with their colours" if len(shape) == 4 else "signals with their sensors"
            problem = f"{given}, which looks like {what} last, and normalizes axis 1."
            yield at(norm, Severity.WARNING, problem, _REMEDY, axis=len(shape) - 1)
    for norm in evidence.norms:
        if norm.name in runs.misled:
            shape, axis = runs.misled[norm.name]
            problem = (
                f"It is given {shape} with features on axis {axis}, and takes another axis of that size for theirs."
            )
            yield at(norm, Severity.WARNING, problem, _OTHER, axis=axis)
