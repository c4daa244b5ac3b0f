"""Batches that are too small for meaningful statistics in training.

Looks at: independent values per channel in a batch: neighbouring pixels of one image agree, so a batch of N images of S
pixels has between N and N·S independent values (N/noise, measured on the batches; for batches of one image, from how
their means differ). For a layer that training calls on pieces of the batch, such as hand-written ghost batches, those
of a piece count.

Harm: in training each layer normalizes by a mean and a variance that are mostly chance, and in evaluation by their
average, which the weights have never seen: the gap between the two grows as batches shrink.

Remedy: freeze the statistics (fine-tuning), synchronise over workers, or convert to batch renorm, a gated layer or
group norm. What is best depends on the task.

Threshold: fewer than 12 independent values: the standard error of the mean is then above 0.29 of the standard
deviation. This is between the source's batches of 16, which cost nothing, and its batches of 8, which cost a point; a
threshold of 16 would report vectors in batches of 16 by chance. Checked only in layers that train.

Source: Wu & He 2018 (arXiv 1803.08494), figure 1; Ioffe 2017 (arXiv 1702.03275).
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.compared import independent_of
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
FEWEST = 12
_REMEDY = Remedy(
    advice="Use larger batches, freeze_ the layers, or convert_ them to batch_renorm, gated_batch_norm or group_norm."
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    for norm in evidence.batch_norms:
        seen = evidence.batches.sightings.get(norm.name, ())
        if not norm.training or norm.is_frozen or "ghost" in norm.kind or norm.kind == "gated_batch_norm":
            continue
        independent = independent_of(seen)
        if independent is None:
            continue
        samples = min(each.samples for each in seen)
        piece = min(samples, evidence.batches.pieces.get(norm.name, samples))
        independent *= piece / samples
        if independent < FEWEST:
            what = "batch" if piece == samples else "piece"
            problem = (
                f"A {what} of {piece} has {independent:.3g} independent values per channel here, so its statistics are "
                "mostly chance."
            )
            yield at(norm, Severity.WARNING, problem, _REMEDY, independent=independent)
