"""Outputs in evaluation that depend on the other samples of the batch.

Looks at: the output for the first two samples of a batch with and without the others, with every module in evaluation,
and the innermost modules, norms or not, whose outputs differ although their inputs for these samples are the same.

Harm: a prediction is not a function of its input: it changes with the batch size and the neighbours, and fails for a
single sample. Causes: batch norms without running statistics; a forward that calls batch norm with ``training=True``; a
norm written by hand; an attention that treats the batch as the sequence (``batch_first``). Gated layers and dynamic
quantisation do so on purpose, and are notes.

Remedy: build the layer with ``track_running_stats=True`` and measure the statistics, or convert it.

Threshold: 10⁻⁴ of the output's largest magnitude, or four units in the last place of the coarsest dtype involved, which
rounding explains. Outputs that also differ between two runs of the same two samples are random and do not count.

Source: robustdg issue 30.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
_REMEDY = Remedy(advice="Give it running statistics (track_running_stats=True, then recalibrate_).")
_MEANT = Remedy(advice="A gated layer does so on purpose; convert_ it to batch_norm if you do not want that.")
_SCALED = Remedy(advice="Dynamic quantisation does so; quantise statically if outputs must not depend on others.")
_AXIS = Remedy(advice="Look in its forward for code that uses the batch axis as another: statistics, or an attention.")
_DYNAMIC = ".quantized.dynamic."


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    assert runs is not None
    norms = {norm.name: norm for norm in evidence.norms}
    for name in runs.dependent:
        norm, module = norms.get(name), evidence.by_name[name]
        change = (
            f"a sample's output changes when the others of its batch are left out, the model's output by up to "
            f"{100 * runs.dependence:.2g} % of its size."
        )
        severity, remedy = Severity.WARNING, _REMEDY
        problem = f"In evaluation it normalizes by the batch: {change}"
        if norm is None:
            remedy, problem = _AXIS, f"In evaluation it, or a function in its forward, mixes samples: {change}"
        if _DYNAMIC in module.label:
            severity, remedy = Severity.NOTE, _SCALED
        elif norm is not None and norm.kind == "gated_batch_norm":
            severity, remedy = Severity.NOTE, _MEANT
        yield at(module, severity, problem, remedy, dependence=runs.dependence)
