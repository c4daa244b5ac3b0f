"""A copy of a network whose weights follow the original and whose statistics do not.

Looks at: parts of a model that have the same names and shapes and nearly the same weights (teacher and student, target
and online network, average and raw weights; put them in one ``nn.ModuleDict`` to see both), and the running statistics
of their norms in pairs. If no batch reaches the copy, as with a target network, it is run on the original's inputs, and
its running statistics are compared with those. Also torch's AveragedModel with ``use_buffers=False``.

Harm: a hand-written average or Polyak step loops over ``parameters()``; running statistics are buffers, and stay as
they were when the copy was made. The copy evaluates with statistics of other weights, and is far worse than the
original. AveragedModel copies the last statistics, which are not those of averaged weights.

Remedy: copy the buffers too (``copy_statistics_``), or measure them for the copy's own weights (``recalibrate_``, which
is better for an average). Safe.

Threshold: weights closer than half of their size (independent draws are √2 apart). Statistics further apart than a
quarter of a standard deviation plus five times the relative distance of the weights: a layer's moments move with its
weights, by about their relative change for each layer below it. If the copy was run: a quarter of a standard deviation
beyond sampling error, a tenth if its weights are exactly the original's, and twice the error of the original's running
statistics. A warning if one of the two is not trained: its parameters are frozen, its statistics are still those of a
new layer, or no given batch reaches it. Two branches that both learn may see different data, so they give a note.

Source: pytorch/ignite issue 2590; DLR-RM/stable-baselines3 pull request 1004; pytorch issue 84053.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.compared import apart, distance_of
from steadynorm.doctor.evidence import Evidence, NormState
from steadynorm.doctor.finding import Finding, Remedy, Severity, at, of_model
from steadynorm.statistics import Moments

APART, OF_EQUALS, FOLLOWED, CLEAR = 0.25, 0.1, 5.0, 2.0
_COPY = Remedy(advice="Copy the statistics with the weights (copy_statistics_), or measure them again (recalibrate_).")
_MEASURE = Remedy(
    advice="Measure the statistics of the averaged weights (recalibrate_, or torch's update_bn).",
    treatment="recalibrate",
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    norms = {norm.name: norm for norm in evidence.norms}
    runs = evidence.batches
    reached = set() if runs is None else {name for name, seen in runs.sightings.items() if seen}
    for twins in evidence.twins:
        for pair in twins.norms:
            first, second = (norms[name] for name in pair)
            original, copied = sorted((first, second), key=lambda each: (each.at_start, each.name not in reached))
            run = () if runs is None else runs.copies.get(copied.name, ())
            if runs is not None and run:
                off = _excess(copied, run)
                if off > max(
                    APART if twins.weights else OF_EQUALS, CLEAR * _excess(original, runs.sightings[original.name])
                ):
                    problem = (
                        f"Its running statistics are {off:.2g} standard deviations from a batch's moments under its "
                        f"weights, which are a copy of those of {original.name}."
                    )
                    yield at(copied, Severity.WARNING, problem, _COPY, distance=off, weights=twins.weights)
                continue
            distance = _distance(original, copied)
            followed = 0.0 if copied.at_start else FOLLOWED * twins.weights
            if distance is not None and distance > APART + followed:
                problem = (
                    f"Its running statistics are {distance:.2g} standard deviations from those of {original.name}, "
                    f"although its weights are a copy ({100 * twins.weights:.2g} % apart)."
                )
                unreached = original.name in reached and copied.name not in reached
                untrained = twins.frozen or copied.at_start or unreached
                severity = Severity.WARNING if untrained else Severity.NOTE
                yield at(copied, severity, problem, _COPY, distance=distance, weights=twins.weights)
    if evidence.averaged and any(norm.mean is not None for norm in evidence.batch_norms):
        problem = "The weights are an average (use_buffers=False), the statistics those of the last weights alone."
        yield of_model(Severity.NOTE, problem, _MEASURE)


def _distance(first: NormState, second: NormState) -> float | None:
    """Return the distance of two layers' statistics; None if one has none, or none that are finite."""
    one, other = _moments(first), _moments(second)
    return None if one is None or other is None else apart(one, other, eps=first.eps)


def _excess(norm: NormState, seen: Sequence[Sighting]) -> float:
    found = distance_of(norm, seen)
    return 0.0 if found is None else found.excess


def _moments(norm: NormState) -> Moments | None:
    mean, var = norm.mean, norm.var
    if mean is None or var is None or not (mean.isfinite() & var.isfinite() & (var >= 0)).all():
        return None
    return Moments(mean=mean, var=var, count=1)
