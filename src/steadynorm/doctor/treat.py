"""Apply treatments to a model, measure the score again, and keep those that help."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from steadynorm.doctor.checks import CHECKS
from steadynorm.doctor.diagnose import diagnose
from steadynorm.doctor.diagnosis import Diagnosis
from steadynorm.doctor.finding import Finding
from steadynorm.doctor.runs import scores_of
from steadynorm.doctor.score import Measure
from steadynorm.doctor.treatments import TREATMENTS, Case
from steadynorm.printable import printable_line
from steadynorm.surgery.batches import Batches, Forward, feed, unwrapped
from steadynorm.surgery.change import Change, NothingDoneError
from steadynorm.surgery.named_modules import check_plain

__all__ = ["Applied", "Treatment", "treat_"]

_EXCHANGING = ("from_sync", "float32", "freeze")
"""Treatments that replace modules or buffers, which a wrapper would not notice."""
_MEASURING = ("repair", "recalibrate")
"""Treatments that change the statistics that a checkpoint would provide."""
MOST_BATCHES = 32
"""Largest number of batches used."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """One treatment that was tried.

    Args:
        treatment: its name.
        findings: the findings that it treats.
        change: what it changed; None if it could change nothing.
        before: mean score before it, less is better; NaN without a score.
        after: mean score after it.
        kept: whether it was kept.
        why: the reason why it was undone or changed nothing; empty if kept.
        sign: −1 if scores are shown negated (a metric), else 1.
    """

    treatment: str
    findings: tuple[Finding, ...]
    change: Change | None
    before: float
    after: float
    kept: bool
    why: str = ""
    sign: int = 1

    def __str__(self) -> str:
        checks = ", ".join(dict.fromkeys(finding.check for finding in self.findings))
        numbers = (
            "" if math.isnan(self.after) else f", score {self.sign * self.before:.4g} -> {self.sign * self.after:.4g}"
        )
        if self.change is None:
            return f"{self.treatment} for {checks}: not done: {self.why}"
        if not self.kept:
            return f"{self.treatment} for {checks}: undone: {self.why}"
        return f"{self.treatment} for {checks}: {len(self.change.changed)} layers changed{numbers}"


@dataclass(kw_only=True, eq=False)
class Treatment:
    """What :func:`treat_` did to a model, what it advises, and :meth:`undo`.

    Args:
        model: the model after it; a new object only if the root module itself was replaced.
        applied: every treatment that was tried, in order.
        advice: findings that only the user can act on.
        before: score of each batch before all treatments; empty without a score.
        after: score of each batch after them.
        sign: −1 if scores are shown negated (a metric, where more is better), else 1.
    """

    model: nn.Module
    applied: tuple[Applied, ...]
    advice: tuple[Finding, ...]
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    sign: int = 1
    _given: nn.Module = field(repr=False)
    _undone: bool = field(default=False, repr=False)

    def undo(self) -> nn.Module:
        """Restore the model as it was, bit for bit.

        Returns:
            the model before the treatment, the same object.

        Raises:
            RuntimeError: already undone, or the model has been changed since.
        """
        if self._undone:
            raise RuntimeError("treat_: this treatment has been undone already.")
        _undo(self.applied)
        self.model, self._undone = self._given, True
        return self.model

    def __str__(self) -> str:
        which = "less is better" if self.sign > 0 else "more is better"
        numbers = f"score {self.sign * _mean(self.before):.4g} -> {self.sign * _mean(self.after):.4g} ({which})"
        score = numbers if self.before else ""
        kept = sum(each.kept for each in self.applied)
        head = f"{kept} of {len(self.applied)} treatments kept{f', {score}' if score else ''}."
        left = [f"left to you: {each.check} at {each.place}: {each.remedy.advice}" for each in self.advice]
        return "\n".join(map(printable_line, [head, *map(str, self.applied), *left]))


def treat_(
    model: nn.Module,
    diagnosis: Diagnosis,
    batches: Iterable[Any] | None = None,
    *,
    forward: Forward | None = None,
    loss: Measure | None = None,
    metric: Measure | None = None,
    checkpoint: Mapping[str, Any] | nn.Module | None = None,
) -> Treatment:
    """Apply the remedies of a diagnosis, keep those that help, and undo the others.

    A treatment is undone if it makes the mean score worse by more than two standard errors. If a finding has a cost,
    which is the whole model's, all layers are treated; otherwise only those named. Running statistics are measured on
    the first half of the batches and scored on the second; at most 32 batches are used. Weights of a checkpoint are
    loaded only if they improve the score. If anything was kept and there is a score, the model is diagnosed again by
    the same checks and new treatments follow, because one fault can hide others. An error or an interruption leaves the
    model unchanged.

    Args:
        model: the model that was diagnosed; changed in place. In a wrapped or compiled model no module is replaced.
        diagnosis: from :func:`diagnose`, of this model.
        batches: batches like the training data; without them nothing is measured, and statistics are only repaired.
        forward: (model, batch) -> output: how to run the model on a batch; see :func:`steadynorm.surgery.recalibrate_`.
        loss: as for :func:`diagnose`.
        metric: as for :func:`diagnose`.
        checkpoint: as for :func:`diagnose`; the source for what ``checkpoint-diff`` finds.

    Returns:
        the Treatment, which can be undone.

    >>> import steadynorm
    >>> model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
    >>> _ = model[1].running_var[2].fill_(torch.nan)
    >>> steadynorm.treat_(model, steadynorm.diagnose(model)).applied[0].kept
    True
    """
    run = forward or feed
    kept = [] if batches is None else list(itertools.islice(Batches(batches, "treat_"), MOST_BATCHES))
    half = max(1, len(kept) // 2)
    measured, judged = kept[:half], kept[half:] or kept
    score = _Score(unwrapped(model), judged, run, loss, metric)
    first = before = score()
    applied: list[Applied] = []
    case = Case(
        model=score.model,
        names=frozenset(),
        batches=measured,
        forward=run,
        scored=bool(before),
        checkpoint=checkpoint,
    )
    try:
        before = _apply_all(model, diagnosis, case, score, before, applied)
        if before and any(each.kept for each in applied):
            skipped = set(CHECKS) - set(diagnosis.checks) - set(diagnosis.not_run)
            again = diagnose(score.model, measured, forward=run, loss=loss, metric=metric, skip=skipped)
            before = _apply_all(model, again, case, score, before, applied)
    except BaseException:
        _undo(applied)
        raise
    advice = tuple(finding for finding in diagnosis if not finding.remedy.treatment)
    return Treatment(
        model=score.model if unwrapped(model) is model else model,
        applied=tuple(replace(each, sign=score.sign) for each in applied),
        advice=advice,
        before=first,
        after=before,
        sign=score.sign,
        _given=model,
    )


def _apply_all(
    model: nn.Module,
    diagnosis: Diagnosis,
    case: Case,
    score: _Score,
    before: tuple[float, ...],
    applied: list[Applied],
) -> tuple[float, ...]:
    """Try every requested treatment that has not been tried; return the model's scores afterwards."""
    tried = tuple(applied)
    for name, treatment in TREATMENTS.items():
        findings = tuple(finding for finding in diagnosis if name in _treatments(finding))
        if not findings or any(each.treatment == name and _covers(each, findings) for each in tried):
            continue
        if name in _MEASURING and _was_loaded(applied):
            loaded, findings = findings, _not_loaded(findings, applied)
            if not findings:
                applied.append(_refused(name, loaded, "statistics were loaded. Diagnose again"))
                continue
        measured_on_all = any(finding.cost is not None for finding in findings)
        names = frozenset(() if measured_on_all else (finding.layer for finding in findings))
        applied.append(
            _apply(name, treatment, findings, replace(case, model=score.model, names=names))
            if name not in _EXCHANGING or (why := _why_not_plain(model)) is None
            else _refused(name, findings, why)
        )
        if applied[-1].change is not None:
            applied[-1], before = _judge(applied[-1], before, score)
    return before


def _layers(findings: Iterable[Finding]) -> set[str]:
    """Name the layers to treat; none means all, if a finding is of the whole model or has its cost."""
    found = {each.layer if each.cost is None else "" for each in findings}
    return set() if "" in found else found


def _covers(applied: Applied, findings: Iterable[Finding]) -> bool:
    """Return whether a treatment was tried at the layers of these findings, or everywhere."""
    before, now = _layers(applied.findings), _layers(findings)
    return not before or (bool(now) and now <= before)


def _why_not_plain(model: nn.Module) -> str | None:
    """Say why the modules of a model cannot be replaced; None if they can."""
    try:
        check_plain("treat_", model)
    except TypeError as error:
        return str(error)
    return None


def _refused(name: str, findings: tuple[Finding, ...], why: str) -> Applied:
    nan = math.nan
    return Applied(treatment=name, findings=findings, change=None, before=nan, after=nan, kept=False, why=why)


def _treatments(finding: Finding) -> tuple[str, ...]:
    """Name the treatments of a finding: a wrong momentum also leaves statistics of too few batches."""
    treatment = finding.remedy.treatment
    return (treatment, "recalibrate") if treatment == "momentum" else (treatment,)


def _was_loaded(applied: Sequence[Applied]) -> bool:
    return any(each.treatment == "load" and each.kept for each in applied)


def _not_loaded(findings: Iterable[Finding], applied: Sequence[Applied]) -> tuple[Finding, ...]:
    """Return the findings at layers whose statistics were not loaded, without those of the whole model."""
    changes = [each.change for each in applied if each.treatment == "load" and each.change is not None]
    loaded = {one.name for change in changes for one in change.changed}
    return tuple(each for each in findings if each.cost is None and each.layer not in loaded)


def _apply(name: str, treatment: Callable[[Case], Change | str], findings: tuple[Finding, ...], case: Case) -> Applied:
    """Apply a treatment; say why if that is impossible."""
    try:
        change = treatment(case)
    except (NothingDoneError, ValueError) as error:
        return _refused(name, findings, str(error))
    if isinstance(change, str):
        return _refused(name, findings, change)
    return Applied(treatment=name, findings=findings, change=change, before=math.nan, after=math.nan, kept=True)


def _judge(applied: Applied, before: tuple[float, ...], score: _Score) -> tuple[Applied, tuple[float, ...]]:
    """Undo a treatment that made the scores worse; return the result and the model's scores afterwards."""
    change = applied.change
    assert change is not None
    score.model = change.model
    after = score()
    applied = replace(applied, before=_mean(before), after=_mean(after))
    weights = applied.treatment == "load" and any(not finding.layer for finding in applied.findings)
    must_help = weights or applied.treatment == "eps"
    if must_help and not _is_worse(after, before):
        why = "the score was not better after it"
    elif _is_worse(before, after):
        why = "the score was worse after it"
    else:
        return applied, after
    score.model = change.undo()
    return replace(applied, kept=False, why=why), before


def _undo(applied: Sequence[Applied]) -> None:
    """Undo the kept treatments, the last first."""
    for each in reversed(applied):
        if each.kept and each.change is not None:
            each.change.undo()


class _Score:
    """Score the model's present state in evaluation."""

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], forward: Forward, loss: Measure | None, metric: Measure | None
    ) -> None:
        self.model = model
        self.sign = -1 if loss is None and metric is not None else 1
        self._batches, self._forward, self._loss, self._metric = batches, forward, loss, metric

    def __call__(self) -> tuple[float, ...]:
        if not self._batches:
            return ()
        return scores_of(self.model, self._batches, self._forward, loss=self._loss, metric=self._metric)


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) if scores else math.nan


def _is_worse(before: Sequence[float], after: Sequence[float]) -> bool:
    """Return whether scores rose by more than two standard errors; a change to NaN is worse, one from NaN is not."""
    if not before or not after:
        return False
    if not math.isfinite(_mean(before)):
        return False
    if not math.isfinite(_mean(after)):
        return True
    changes = [second - first for first, second in zip(before, after, strict=True)]
    mean = _mean(changes)
    if len(changes) < 2:
        return mean > 0
    error = math.sqrt(sum((each - mean) ** 2 for each in changes) / (len(changes) - 1) / len(changes))
    return mean > 2 * error and mean > 0
