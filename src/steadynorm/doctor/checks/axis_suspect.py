"""A norm that normalizes another axis than the channels.

Looks at: the feature axis of each layer's input, followed from linear layers, embeddings and layer norms (last axis)
and convolutions (axis 1) through activations, transpositions and changes of shape; and images or signals whose colours
or sensors are on the last axis.

Harm: batch norm always takes axis 1 as channels. Given (N, L, C) it normalizes every time step over the features, with
running statistics of time steps. If L differs from C, torch raises an error, unless the layer is built for L; if they
are equal, nothing fails. A map (N, C, L) that is reshaped to (N·L, C) without moving C to the end first has the right
size, but every channel mixes values of all features. Group norm takes axis 1 as well, and layer norm the last: if the
features are on another axis of the same size, nothing fails. A map that is flattened with its channels, normalized and
reshaped back has separate statistics for each position, from only one value per sample, and the convolution is no
longer translation-equivariant.

Remedy: transpose to (N, C, L) before the layer and back after it, or flatten to (N·L, C). This needs a change of the
model's code.

Threshold: none for the axis, which is traced, not guessed. Colours last: at most 4 values on the last axis, more on
axis 1. Group and layer norm: both axes have the same size.

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

_FLAT = Remedy(advice="Normalize the map (BatchNorm2d of its channels): a convolution's positions share statistics.")
_OTHER = Remedy(advice="Transpose before it and back after it: group norm normalizes axis 1, layer norm the last.")


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
            problem = f"{given}, reshaped from a map without moving its features last: each channel mixes all features."
            yield at(norm, Severity.WARNING, problem, _REMEDY)
        elif axis is not None and axis < len(shape):
            problem = f"{given} with features on axis {axis}, but normalizes axis 1."
            yield at(norm, Severity.WARNING, problem, _REMEDY, axis=axis)
        elif norm.name in runs.flattened:
            channels = runs.flattened[norm.name]
            problem = (
                f"{given}, a map of {channels} channels that is flattened with its positions and reshaped back: "
                "each position has statistics of its own."
            )
            yield at(norm, Severity.WARNING, problem, _FLAT, channels=channels)
        elif norm.name in runs.raw and len(shape) in (3, 4) and shape[-1] <= COLOURS < shape[1]:
            what = "images with their colours" if len(shape) == 4 else "signals with their sensors"
            problem = f"{given}, which looks like {what} last, but normalizes axis 1."
            yield at(norm, Severity.WARNING, problem, _REMEDY, axis=len(shape) - 1)
    for norm in evidence.norms:
        if norm.name in runs.misled:
            shape, axis = runs.misled[norm.name]
            problem = f"It is given {shape} with features on axis {axis}, but normalizes another axis of the same size."
            yield at(norm, Severity.WARNING, problem, _OTHER, axis=axis)
