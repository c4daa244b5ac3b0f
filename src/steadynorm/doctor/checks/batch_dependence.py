"""Outputs in evaluation that depend on the other samples of the batch.

Looks at: the output for the same samples in a batch and in its first half, with every module in evaluation, and the
first layers that treat the same input otherwise.

Harm: a prediction is not a function of its input: it changes with the batch size and the neighbours, and fails for a
single sample. Batch norms without running statistics evaluate so, and a forward that calls batch norm with
``training=True``. Gated layers do so on purpose.

Remedy: build the layer with ``track_running_stats=True`` and measure the statistics, or convert it.

Threshold: 10⁻⁴ of the output's largest magnitude, beyond what rounding explains.

Source: robustdg issue 30.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
_REMEDY = Remedy(advice="Give it running statistics (track_running_stats=True, then recalibrate_).")
_MEANT = Remedy(advice="A gated layer does so on purpose; convert_ it to batch_norm where that is not wanted.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    runs = evidence.batches
    assert runs is not None
    for norm in evidence.batch_norms:
        if norm.name not in runs.dependent:
            continue
        problem = (
            "In evaluation it normalizes by the batch: the model's output for a sample changes by up to "
            f"{100 * runs.dependence:.2g} % of its size when half of the batch is left out."
        )
        meant = norm.kind == "gated_batch_norm"
        yield at(
            norm,
            Severity.NOTE if meant else Severity.WARNING,
            problem,
            _MEANT if meant else _REMEDY,
            dependence=runs.dependence,
        )
