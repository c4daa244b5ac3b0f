"""Judge the distances of a stretch of training against those of earlier stretches, without acting on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steadynorm.doctor.watch.classes import alike
from steadynorm.doctor.watch.levels import Levels

__all__ = ["Judge", "Verdict"]

WARM_UP, WARM_UP_TIMES = 100, 5
"""Forwards before distances are judged, absolute and in units of 1/momentum: earlier running statistics still depend on
their initial values."""
FOLLOW, FOLLOW_GAP = 0.2, 0.01
"""Weights of a stretch in the usual values; the second lets a gap that widens over a hundred stretches be reported."""
OUTLIER_MEAN, OUTLIER_VAR = 1.0, math.log(4)
OUTLIER_MEAN_USUAL, OUTLIER_VAR_USUAL = 30.0, 15.0
"""A batch is an outlier if it is at least as far as the first and, in usual distances, as the second."""
FEW, OFTEN, IN_A_ROW = 0.25, 0.15, 3
"""Fractions of a stretch, and of the last ones, up to which unusual batches are outliers; more of them are part of the
data. The third: this many or more in a row at either end of a stretch are a change in progress."""
LAG_MEAN, LAG_VAR = 0.25, math.log(2)
GAP_MEAN, GAP_VAR, GAP_USUAL = 1.0, math.log(4), 10.0
COLLAPSE = 0.5
"""Fraction of channels without variance, beyond the usual."""
SAME, NEARLY, TWICE, ALWAYS = 1e-4, 0.05, 0.3, 0.9
"""A batch repeats the previous one within the first fraction of the larger distances between batches, in some layer, or
within the second in most layers, if weights have moved in between; the others are fractions of a stretch."""
TOGETHER = 32
"""Number of samples whose batches are judged together by class."""
DEVIATIONS, ALIKE = 6.0, 1 / 3
"""Excess of same-class pairs over independent draws, in standard deviations, and as a fraction of all pairs."""
ONCE = 0.8
"""Fraction of all pairs that counts even if it does not last. With mixed labels, those that the model does not expect
yet are visible, often the same one in a batch: up to 0.55 in healthy trainings."""
SMALL = 0.5
"""Batches with fewer pairs than this fraction of the usual number are not judged: the last one of an epoch."""
FORGET = 0.995
"""Weight of the classes seen so far in each next stretch: half of it is gone after 138."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """Beginning or end of a fault.

    Args:
        check: name of the check.
        layers: indices of the layers, the worst first; empty for the model.
        rows: mask of the affected forwards of the stretch, (T,); None for the whole stretch.
        evidence: measured values, by name.
        over: whether the fault has ended.
        lasting: whether the fault continues at the end of the stretch.
    """

    check: str
    layers: tuple[int, ...] = ()
    rows: Tensor | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)
    over: bool = False
    lasting: bool = False


class Judge:
    """Judge one stretch after another; the whole state is in ``memory``.

    Args:
        momenta: momenta of the layers.
    """

    def __init__(self, momenta: Sequence[float]) -> None:
        layers = len(momenta)
        self._warm_up = max(WARM_UP, WARM_UP_TIMES / max(min(momenta), 1e-3))
        self.memory: dict[str, Tensor] = {"forwards": torch.zeros((), dtype=torch.int64)}
        for name in ("usual_mean", "usual_var", "usual_gap", "usual_gap_var", "usual_dead"):
            self.memory[name] = torch.full((layers,), torch.nan, dtype=torch.float64)
        for name in ("nonfinite", "lag", "gap", "collapse"):
            self.memory[name] = torch.zeros(layers, dtype=torch.int64)  # see _follow
        self.memory["strange"] = torch.zeros((), dtype=torch.float64)
        self.memory["classes"] = torch.zeros(0, dtype=torch.float64)
        self.memory |= {name: torch.zeros(1, dtype=torch.int64) for name in ("single", "repeated")}

    @property
    def is_new(self) -> bool:
        """Whether too little has been seen to judge distances."""
        return int(self.memory["forwards"]) < self._warm_up

    def judge(self, levels: Levels, classes: Tensor | None) -> list[Verdict]:
        """Judge a stretch.

        Args:
            levels: its distances, on the CPU.
            classes: counts of each class in each forward, (T, K), on the CPU; None if unknown.
        """
        forwards = len(levels.finite)
        found = self._nonfinite(levels)
        classes_found = self._single_class(classes)
        found += classes_found
        if not self.is_new and not self._is_explained(classes_found):
            outliers = self._outliers(levels)
            ordinary = torch.ones(forwards, dtype=torch.bool) if outliers is None else ~_rows_of(outliers)
            found += [] if outliers is None else [outliers]
            found += self._lag(levels) + self._gap(levels) + self._collapse(levels) + self._repeated(levels)
            self._remember(levels, ordinary)
        self.memory["forwards"] += forwards
        return found

    def _is_explained(self, found: list[Verdict]) -> bool:
        """Whether few classes in a batch explain the distances."""
        return bool(self.memory["single"][0] > 0) or any(each.rows is not None for each in found)

    def _nonfinite(self, levels: Levels) -> list[Verdict]:
        bad = levels.finite == 0
        verdicts = self._follow("nonfinite", "nonfinite-statistics", bad.any(0), ~bad.any(0), begin=1, end=1)
        return [replace(each, rows=bad.any(1)) if not each.over else each for each in verdicts]

    def _outliers(self, levels: Levels) -> Verdict | None:
        mean, var = levels.mean.nan_to_num(0), levels.var.nan_to_num(0).abs()
        usual_mean, usual_var = (
            torch.where(self.memory[name].isnan(), now.median(0).values, self.memory[name])
            for name, now in (("usual_mean", mean), ("usual_var", var))
        )
        bad = (mean > OUTLIER_MEAN) & (mean > OUTLIER_MEAN_USUAL * usual_mean)
        bad |= (var > OUTLIER_VAR) & (var > OUTLIER_VAR_USUAL * usual_var)
        rows = _within(bad.any(1))
        share = rows.double().mean()
        self.memory["strange"] = strange = self.memory["strange"] + FOLLOW * (share - self.memory["strange"])
        if not rows.any() or share > FEW or strange > OFTEN:
            return None
        worst = (mean / OUTLIER_MEAN + var / OUTLIER_VAR)[rows].amax(0)
        return Verdict(
            check="outlier-statistics",
            layers=_worst(worst, bad.any(0)),
            rows=rows,
            evidence={
                "batches": float(rows.sum()),
                "mean off by, in standard deviations": float(mean.max().sqrt()),
                "variance off by a factor of": _factor(levels.var.nan_to_num(0)),
            },
        )

    def _lag(self, levels: Levels) -> list[Verdict]:
        mean, var = levels.lag_mean.nan_to_num(0), levels.lag_var.nan_to_num(0).abs()
        on = (mean > LAG_MEAN) | (var > LAG_VAR)
        off = (mean < LAG_MEAN / 4) & (var < LAG_VAR / 2) & levels.lag_mean.isfinite()
        evidence = {
            "mean behind by, in standard deviations": float(mean.max().sqrt()),
            "variance behind by a factor of": _factor(levels.lag_var.nan_to_num(0)),
        }
        return self._follow("lag", "statistics-lag", on, off, mean / LAG_MEAN + var / LAG_VAR, evidence)

    def _gap(self, levels: Levels) -> list[Verdict]:
        """Judge the difference between training and evaluation for the central batch, apart from lag."""
        mean, var = levels.running_mean.nanmedian(0).values, levels.running_var.abs().nanmedian(0).values
        usual = (self.memory[name].nan_to_num(0) for name in ("usual_gap", "usual_gap_var"))
        limits = [
            torch.clamp(GAP_USUAL * each, min=least) for each, least in zip(usual, (GAP_MEAN, GAP_VAR), strict=True)
        ]
        share = torch.maximum(mean / limits[0], var / limits[1])
        off, share = share < 0.5, share.nan_to_num(0)
        on = (share > 1) & (self.memory["lag"] <= 0)
        evidence = {
            "mean, in standard deviations": float(mean.nan_to_num(0).max().sqrt()),
            "variance, a factor of": math.exp(float(var.nan_to_num(0).max())),
        }
        return self._follow("gap", "train-eval-gap", on, off, share, evidence)

    def _collapse(self, levels: Levels) -> list[Verdict]:
        more = levels.dead - self.memory["usual_dead"].nan_to_num(0)
        on, off, more = more > COLLAPSE, more < COLLAPSE / 2, more.nan_to_num(0)
        evidence = {"share of channels without variance": float(levels.dead.nan_to_num(0).max())}
        return self._follow("collapse", "collapsed-variance", on, off, more, evidence)

    def _repeated(self, levels: Levels) -> list[Verdict]:
        """Judge whether each batch comes twice in a row: every other batch has nearly the moments of the one before."""
        steps = levels.step_mean
        large = steps.nanquantile(0.75, dim=0)
        near = ((steps < SAME * large).any(1) | ((steps < NEARLY * large).double().mean(1) > 0.5)).double().mean()
        on, off = torch.tensor([TWICE < float(near) < ALWAYS]), torch.tensor([float(near) < TWICE / 2])
        evidence = {"share of batches like the one before": float(near)}
        verdicts = self._follow("repeated", "double-update", on, off, evidence=evidence)
        return [replace(each, layers=()) for each in verdicts]

    def _single_class(self, counts: Tensor | None) -> list[Verdict]:
        """Judge the fraction of same-class pairs, over as many batches as have enough samples together."""
        if counts is None or counts.sum(1).median() < 2:  # evidence from earlier batches expires
            no = torch.tensor([False])
            return [replace(each, layers=()) for each in self._follow("single", "single-class-batch", no, ~no, begin=1)]
        seen = self.memory["classes"]
        if len(seen) != counts.shape[1]:
            seen = torch.zeros(counts.shape[1], dtype=torch.float64)
        self.memory["classes"] = seen = FORGET * seen + counts.double().sum(0)
        samples = float(counts.sum(1).median())
        together = min(len(counts), max(1, math.ceil(TOGETHER / samples)))
        share = _alike_together(counts.double(), together)
        limit, expected = _limit(seen / seen.sum(), samples, together)
        few = share > limit
        lasting = bool(few.float().mean() > FEW) or bool(few[-2:].all() and len(few) > 1)
        few &= lasting | (share > ONCE)
        rows = few.repeat_interleave(together)
        rows = torch.cat((rows, torch.zeros(len(counts) - len(rows), dtype=torch.bool)))
        evidence = {"classes in a batch": 1 / max(float(share.max()), 1e-9), "usual": 1 / expected}
        on, off = torch.tensor([lasting]), ~rows.any()[None]
        verdicts = self._follow("single", "single-class-batch", on, off, evidence=evidence, begin=1, end=1)
        verdicts = [replace(each, layers=(), rows=None if each.over else rows, lasting=True) for each in verdicts]
        if rows.any() and not verdicts and self.memory["single"][0] <= 0:
            verdicts = [Verdict(check="single-class-batch", rows=rows, evidence=evidence)]
        return verdicts

    def _follow(
        self,
        name: str,
        check: str,
        on: Tensor,
        off: Tensor,
        badness: Tensor | None = None,
        evidence: Mapping[str, float] | None = None,
        *,
        begin: int = 2,
        end: int = 2,
    ) -> list[Verdict]:
        """Return beginnings and ends of a fault, after several stretches in a row, so that verdicts do not flap.

        Args:
            name: of the streaks in memory. Below ``begin`` they count stretches with it, from there on those without.
            check: the name in verdicts.
            on: layers with the fault.
            off: layers that are certainly without it.
            badness: sort key of the layers.
            evidence: evidence for the verdicts.
            begin: stretches in a row before it begins.
            end: stretches in a row before it ends.
        """
        streak, on = self.memory[name], on & ~off
        active = streak >= begin
        waiting = torch.where(on, streak + 1, 0)
        lasting = torch.where(off, streak + 1, torch.where(on, begin, streak))
        new = torch.where(active, lasting, waiting)
        began, ended = ~active & (new >= begin), new >= begin + end
        self.memory[name] = torch.where(ended, 0, new)
        badness = on.double() if badness is None else badness
        verdicts = []
        if began.any():
            verdicts.append(Verdict(check=check, layers=_worst(badness, began), evidence=evidence or {}, lasting=True))
        if ended.any():
            verdicts.append(Verdict(check=check, layers=_worst(badness, ended), over=True))
        return verdicts

    def _remember(self, levels: Levels, ordinary: Tensor) -> None:
        """Update the usual values, except where something is wrong."""
        medians = {
            "usual_mean": levels.mean[ordinary].nanmedian(0).values,
            "usual_var": levels.var[ordinary].abs().nanmedian(0).values,
            "usual_gap": levels.running_mean[ordinary].nanmedian(0).values,
            "usual_gap_var": levels.running_var[ordinary].abs().nanmedian(0).values,
            "usual_dead": levels.dead,
        }
        well = (self.memory["gap"] <= 0) & (self.memory["collapse"] <= 0) & (self.memory["nonfinite"] <= 0)
        for name, new in medians.items():
            old = self.memory[name]
            weight = FOLLOW_GAP if name.startswith("usual_gap") else FOLLOW
            moved = torch.where(old.isnan(), new, old + weight * (new - old))
            self.memory[name] = torch.where(well & new.isfinite(), moved, old)


def _within(rows: Tensor) -> Tensor:
    """Drop runs of unusual rows at the start or the end, if they are longer than a few rows."""
    rows = rows.clone()
    for _ in range(2):
        in_a_row = int(rows.int().cumprod(0).sum())
        if in_a_row >= IN_A_ROW:
            rows[:in_a_row] = False
        rows = rows.flip(0)
    return rows


def _alike_together(counts: Tensor, together: int) -> Tensor:
    """Return the fraction of same-class pairs over this many batches, (T // together,); 0 for too few samples."""
    samples = counts.sum(1)
    pairs = (samples * (samples - 1)).unfold(0, together, together)
    share = (alike(counts).nan_to_num(0).unfold(0, together, together) * pairs).sum(1) / pairs.sum(1).clamp(min=1)
    return torch.where(pairs.sum(1) < SMALL * pairs.sum(1).median(), 0, share)


def _limit(shares: Tensor, samples: float, together: int) -> tuple[float, float]:
    """Return the fraction of same-class pairs above which batches have few classes, and that of independent draws.

    S is a U-statistic of second order, so Var S = (4(N − 2)(Σπ³ − (Σπ²)²) + 2(Σπ² − (Σπ²)²)) / (N(N − 1)).
    Source: Hoeffding 1948, "A class of statistics with asymptotically normal distribution".
    """
    expected = float(shares.square().sum())
    one, two = max(float(shares.pow(3).sum()) - expected**2, 0.0), expected - expected**2
    var = max(4 * (samples - 2) * one + 2 * two, 0.0) / (samples * (samples - 1)) / together
    return max(expected + DEVIATIONS * math.sqrt(var), ALIKE, min(2 * expected, 0.999)), expected


def _worst(badness: Tensor, chosen: Tensor) -> tuple[int, ...]:
    return tuple(int(each) for each in badness.argsort(descending=True) if chosen[each])


def _factor(ratios: Tensor) -> float:
    """Return the factor farthest from 1, given logarithms."""
    flat = ratios.flatten()
    return math.exp(float(flat[flat.abs().argmax()].clamp(-50, 50)))


def _rows_of(verdict: Verdict) -> Tensor:
    assert verdict.rows is not None
    return verdict.rows
