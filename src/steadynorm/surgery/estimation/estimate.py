"""Estimate the running statistics of all layers at once, so that they are those of given data.

A layer's input depends on the statistics of the layers before it, so they are found as a fixed point. In the first
pass each layer normalizes by its batch statistics; in each further pass by the statistics that the previous pass
measured. In a chain, the k-th layer is exact after k passes, and nothing moves after as many passes as layer calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice

import torch
from torch import nn

from steadynorm.statistics import Moments
from steadynorm.surgery.batches import Batches, Forward, evaluating
from steadynorm.surgery.estimation.groups import standard_error
from steadynorm.surgery.estimation.one_pass import Pass, Target
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.kinds import eps_of
from steadynorm.surgery.runnable import check_runnable

__all__ = ["FEWEST_BATCHES", "SETTLED", "Estimator", "Population"]

FEWEST_BATCHES = 8
"""Batches of a rank that are needed before their scatter gives a standard error."""
SETTLED = 1e-4
"""Change in a pass, in units of a channel's standard deviation, below which no further pass is run."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """The statistics found, and how they were measured.

    Args:
        moments: of each target, float64 on the CPU, with the unbiased variance; None if it was not reached.
        batches: used, on all ranks together.
        samples: of the target that saw the most.
        passes: over the batches.
        moved: by how much each target's numbers moved in the last pass, the mean in units of √(var + eps), the
            variance in units of var + eps; 0 where one pass is exact.
        standard_error: of the worst channel, in the same units; NaN for a single batch.
    """

    moments: list[Moments | None]
    batches: int
    samples: int
    passes: int
    moved: list[float]
    standard_error: float

    def measured(self) -> dict[str, float]:
        """Return the numbers for a Change."""
        return {
            "batches": self.batches,
            "samples": self.samples,
            "passes": self.passes,
            "standard_error": self.standard_error,
            "moved": max(self.moved, default=0.0),
        }


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """One pass, all ranks together: the moments and samples of each target."""

    moments: list[Moments]
    samples: list[int]
    batches: int
    calls: int


class Estimator:
    """Finds the statistics of the targets' inputs over batches, without changing the model.

    Args:
        verb: name of the operation, for messages.
        model: the root.
        targets: layers, at least one; all others evaluate as they are.
        batches: of this rank.
        forward: runs the model on a batch.
        group: the ranks whose batches count together.
        prior: samples that the running statistics count as.
    """

    def __init__(
        self,
        verb: str,
        model: nn.Module,
        targets: Sequence[Target],
        *,
        batches: Batches,
        forward: Forward,
        group: RankGroup,
        prior: float = 0,
    ) -> None:
        self._verb, self._model, self._targets, self._batches = verb, model, targets, batches
        self._forward, self._group, self._prior = forward, group, prior
        check_runnable(verb, model)
        self._stored = [target.stored() for target in targets]

    def run(self, *, tolerance: float | None = None, settled: float = SETTLED, passes: int | None = None) -> Population:
        """Find the statistics.

        Args:
            tolerance: standard error from which on no more batches are taken; None takes all.
            settled: largest change in a pass that ends the passes.
            passes: most passes; None is one more than calls of targets in a forward.

        Raises:
            ValueError: no batches on any rank; a batch that is not finite at a target, or one value per channel.
        """
        with evaluating(self._model):
            last, totals, error = self._first_pass(tolerance)
            found, weights = self._found(totals), self._weights(totals)
            estimates, moved, made = self._estimates(found, weights), [0.0] * len(self._targets), 1
            most = totals.calls + 1 if passes is None else passes
            while totals.calls > 1 and made < most:
                last, totals = self._further_pass(last, found, weights)
                found, weights, before = self._found(totals), self._weights(totals), estimates
                estimates = self._estimates(found, weights)
                moved = [_moved(*each) for each in zip(self._targets, before, estimates, strict=True)]
                made += 1
                if self._group.agree(max(moved) <= settled):
                    break
        return Population(
            moments=estimates,
            batches=totals.batches,
            samples=max(totals.samples),
            passes=made,
            moved=moved,
            standard_error=error,
        )

    def _first_pass(self, tolerance: float | None) -> tuple[Pass, _Totals, float]:
        """Take batches until their standard error is small enough, or there are no more on any rank."""
        pass_ = Pass(self._verb, self._model, self._targets, self._forward)
        with self._batches.randomness_kept(self._model), pass_.listening():
            source = iter(self._batches)
            for number in _rounds() if tolerance is not None else (None,):
                before = pass_.batches
                with self._group.raise_together():
                    for batch in islice(source, number):
                        pass_.take(batch)
                totals = self._totals(pass_)
                error = self._standard_error(pass_, totals)
                exhausted = number is None or pass_.batches - before < number
                fine = tolerance is not None and error <= tolerance
                if self._group.all(exhausted or fine):
                    break
        if totals.batches == 0:
            raise ValueError(f"{self._verb}: there must be at least one batch, got none. Check the loader.")
        return pass_, totals, error

    def _further_pass(
        self, before: Pass, found: Sequence[Moments | None], weights: Sequence[float]
    ) -> tuple[Pass, _Totals]:
        pass_ = Pass(self._verb, self._model, self._targets, self._forward, before, found, weights)
        with self._batches.randomness_kept(self._model), pass_.listening(), self._group.raise_together():
            for batch in self._batches.first(before.batches):
                pass_.take(batch)
        return pass_, self._totals(pass_)

    def _totals(self, pass_: Pass) -> _Totals:
        """Merge the measurements of all ranks, in one collective."""
        own = [groups.total() for groups in pass_.groups]
        head = torch.tensor([pass_.batches, pass_.calls, *pass_.samples, *(int(each.count) for each in own)])
        rows = self._group.gather(torch.cat([head.double(), *(torch.cat((each.mean, each.var)) for each in own)]))
        heads, numbers = rows[:, : len(head)].long(), rows[:, len(head) :]
        batches, calls, samples, counts = torch.split(heads, [1, 1, len(own), len(own)], dim=1)
        each_target = torch.split(numbers, [2 * len(each.mean) for each in own], dim=1)
        return _Totals(
            moments=[_merged(counts[:, at].tolist(), part) for at, part in enumerate(each_target)],
            samples=samples.sum(0).tolist(),
            batches=int(batches.sum()),
            calls=int(calls.max()),
        )

    def _standard_error(self, pass_: Pass, totals: _Totals) -> float:
        """Return the standard error of the worst channel, in one collective."""
        own = [groups.scatter(total) for groups, total in zip(pass_.groups, totals.moments, strict=True)]
        parts = torch.split(self._group.gather(torch.cat(own)).sum(0), [len(each) for each in own])
        worst = [
            target.largest(standard_error(part, total, eps_of(target.module)))
            for target, part, total in zip(self._targets, parts, totals.moments, strict=True)
            if total.count
        ]
        return math.nan if any(map(math.isnan, worst)) else max(worst, default=math.nan)

    def _weights(self, totals: _Totals) -> list[float]:
        """Return the weights of the measured statistics relative to the running statistics."""
        return [samples / (self._prior + samples) if samples else 1.0 for samples in totals.samples]

    def _found(self, totals: _Totals) -> list[Moments | None]:
        """Return the moments with the unbiased variance; None if a target was not reached."""
        for target, found in zip(self._targets, totals.moments, strict=True):
            if found.count == 1:
                raise ValueError(
                    f"{self._verb}: there must be more than 1 value per channel for a variance, got 1 in all "
                    f"batches together at {target.describe()}. Give more batches."
                )
        return [
            Moments(mean=each.mean, var=each.var_unbiased, count=each.count) if each.count else None
            for each in totals.moments
        ]

    def _estimates(self, found: Sequence[Moments | None], weights: Sequence[float]) -> list[Moments | None]:
        """Return the new running statistics; None if a target was not reached."""
        each = zip(self._targets, found, weights, strict=True)
        estimates = [None if found is None else target.estimate(found, weight) for target, found, weight in each]
        for target, estimate in zip(self._targets, estimates, strict=True):
            self._check_storable(target, estimate)
        return estimates

    def _check_storable(self, target: Target, estimate: Moments | None) -> None:
        dtype = target.module.running_var.dtype
        if estimate is None or bool((estimate.mean.to(dtype) + estimate.var.to(dtype)).isfinite().all()):
            return
        raise ValueError(
            f"{self._verb}: statistics must fit into their dtype, got a variance up to {float(estimate.var.max()):.3g} "
            f"for {dtype} at {target.describe()}. Convert the layer to float32, or to one of ours."
        )


def _merged(counts: Sequence[int], rows: torch.Tensor) -> Moments:
    """Merge the ranks' moments, in their order; rows of shape (R, 2C)."""
    each = [
        Moments(mean=mean, var=var, count=count)
        for count, (mean, var) in zip(counts, (row.chunk(2) for row in rows), strict=True)
    ]
    return reduce(Moments.merge, each)


def _moved(target: Target, before: Moments | None, now: Moments | None) -> float:
    """Return how far a target's statistics have moved."""
    if before is None or now is None:
        return 0.0 if before is now else math.inf
    scale = now.var + eps_of(target.module)
    mean, var = (now.mean - before.mean).abs() / scale.sqrt(), (now.var - before.var).abs() / scale
    return target.largest(torch.stack((mean, var)))


def _rounds() -> Iterator[int]:
    """Yield the number of batches until the next check of the standard error: an eighth of those so far."""
    taken = 0
    while True:
        more = max(FEWEST_BATCHES - taken, taken // 8)
        taken += more
        yield more
