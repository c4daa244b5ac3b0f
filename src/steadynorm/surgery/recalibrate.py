"""Measure the running statistics again for the current weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import nn

from steadynorm.statistics import Moments
from steadynorm.surgery.batches import Batches, Forward, feed
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.estimation.estimate import SETTLED, Estimator, Population
from steadynorm.surgery.estimation.one_pass import Target
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.estimation.write_statistics import summary, write_statistics_
from steadynorm.surgery.kinds import Norm, channels_of, kind_of, label
from steadynorm.surgery.named_modules import Where, batch_norms_of
from steadynorm.surgery.runnable import check_runnable, why_not_readable

__all__ = ["recalibrate_"]


def recalibrate_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    where: Where | None = None,
    forward: Forward | None = None,
    prior: float = 0,
    tolerance: float | None = None,
    settled: float = SETTLED,
    passes: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Change:
    r"""Set the running statistics to those of given data, for the current weights ("precise batch norm").

    $$
    \mathrm{mean} = \frac{1}{n} \sum x \qquad \mathrm{var} = \frac{1}{n - 1} \sum (x - \mathrm{mean})^2 \qquad
    \text{over all $n$ values of all batches}
    $$

    Afterwards, in evaluation over the same batches, each layer's input has the mean and variance by which the layer
    normalizes it. Values are weighted equally, not batches. If a layer runs several times per forward, its calls are
    weighted equally, as in training; otherwise the largest level of a feature pyramid would dominate. Sums are centred,
    so no variance is negative. This takes several passes over the batches (see ``passes``), in evaluation mode and
    without gradient. Modes and random number generators are restored; after an error nothing is changed.

    Refused: layers that the batches do not reach, FrozenBatchNorm, layers without running statistics, and unknown
    subclasses. Without ``where``, also layers that were frozen by hand: in evaluation mode while the model trains, or
    with ``track_running_stats=False``.

    ``num_batches_tracked`` is kept, because schedules depend on it. If it is 0, or momentum is None, it becomes the
    number of batches. The noise of a gated layer is kept.

    Args:
        model: the root module; wrappers (DistributedDataParallel, torch.compile) are bypassed.
        batches: an iterable of batches of any size. It is iterated several times; batches from an iterator are kept in
            memory.
        where: (qualified name, module) -> whether to recalibrate it; None takes all.
        forward: how to run the model on a batch; None calls it as :func:`steadynorm.surgery.batches.feed` does.
        prior: number of samples as which the current running statistics count: n samples of data have weight n/(prior +
            n). 0 ignores them; 16 is a good start for a few samples of another domain.
        tolerance: standard error at which to stop taking batches: of any mean in standard deviations, of any variance
            relative to itself (channels with variance below eps count as having eps). Estimated from the differences
            between batches, from 8 batches on. None takes all batches.
        settled: largest change in a pass, in the same units, that ends the passes. 0 continues until the result is
            exact.
        passes: most passes; None is one more than the layer calls of a forward, which is exact for a chain of layers.
        process_group: ranks whose batches are measured together; every rank must call this. None is the default group.
            No effect without torch.distributed.

    Returns:
        the Change; ``measured`` has ``batches``, ``samples``, ``passes``, ``standard_error`` (NaN for one batch) and
            ``moved``, the largest change in the last pass.

    Raises:
        ValueError: no batches; a batch that is not finite at some layer; one value per channel in all; arguments out of
            range. Raised on every rank if it happens on one.
        TypeError: ``batches`` is a single batch, or a batch has an unknown form.
        RuntimeError: ranks have different layers, or another rank failed.
        NothingDoneError: every layer was refused.

    Source: Wu & Johnson 2021 (arXiv 2105.07576), "precise BN"; for ``prior`` Schneider et al. 2020 (arXiv 2006.16971),
    which leaves out the variance between the two means.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> recalibrate_(model, [torch.randn(32, 3), torch.randn(2, 3)]).measured["samples"]
    34
    """
    _check_arguments(prior, tolerance, settled, passes)
    source = Batches(batches, "recalibrate_")
    with Transaction("recalibrate_", model) as edits:
        group = RankGroup("recalibrate_", model, process_group)
        with group.raise_together():
            check_runnable("recalibrate_", model)
            targets = _targets(edits, model, where, prior)
        group.check_same((f"{each.name} {channels_of(each.module)}" for each in targets), "layers")
        if not targets:
            return edits.finish()
        work = Estimator(
            "recalibrate_", model, targets, batches=source, forward=forward or feed, group=group, prior=prior
        )
        found = work.run(tolerance=tolerance, settled=settled, passes=passes)
        for target, moments, moved in zip(targets, found.moments, found.moved, strict=True):
            if moments is None:
                edits.refuse(target.name, label(target.module), "not reached by the batches.")
            else:
                _write(edits, target, moments, found, unsettled=moved if moved > settled else None)
        return edits.finish(**found.measured())


def _check_arguments(prior: float, tolerance: float | None, settled: float, passes: int | None) -> None:
    for name, value in (("prior", prior), ("tolerance", tolerance), ("settled", settled)):
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"recalibrate_: {name} must be at least 0 and finite, got {value}.")
    if passes is not None and not (isinstance(passes, int) and passes >= 1):
        raise ValueError(f"recalibrate_: passes must be at least 1 and a whole number, got {passes}.")


def _targets(edits: Transaction, model: nn.Module, where: Where | None, prior: float) -> list[Target]:
    targets = []
    for named in batch_norms_of(model, where, edits):
        why = _why_not(named.module, model, chosen=where is not None)
        if why is not None:
            edits.refuse(named.name, label(named.module), why)
            continue
        targets.append(Target(name=named.name, module=named.module))
        stored = targets[-1].stored()
        if prior and not bool((stored.mean.isfinite() & stored.var.isfinite() & (stored.var >= 0)).all()):
            raise ValueError(
                "recalibrate_: with a prior the running statistics must be finite, no variance negative, got others at "
                f"{targets[-1].describe()}. Repair them with repair_statistics_, or leave prior at 0."
            )
    return targets


def _why_not(module: Norm, model: nn.Module, *, chosen: bool) -> str | None:
    """Say why a layer's running statistics must not be changed; None if they may be."""
    if kind_of(module)[0].name == "frozen_batch_norm":
        return "frozen. To change its statistics, use unfreeze_ or convert_ first."
    unreadable = why_not_readable(module)
    if unreadable is not None:
        return unreadable
    if chosen:
        return None
    if model.training and not module.training:
        return "it is in evaluation mode while the model trains, so it counts as frozen. where=... includes it."
    if not getattr(module, "track_running_stats", True):
        return "track_running_stats is False, so it counts as frozen. where=... includes it."
    return None


def _write(edits: Transaction, target: Target, moments: Moments, found: Population, *, unsettled: float | None) -> None:
    module, before = target.module, target.stored()
    counter = getattr(module, "num_batches_tracked", None)
    restarts_counter = counter is not None and (module.momentum is None or int(counter) == 0)
    notes = write_statistics_(
        edits, module, moments.mean, moments.var, batches=found.batches if restarts_counter else None
    )
    if unsettled is not None:
        notes.append(
            f"not settled after {found.passes} passes: the last moved it by {unsettled:.2g}. Possible causes: a "
            "layer that is called again on its own output, or batches that differ from pass to pass."
        )
    after = target.stored()
    edits.note_changed(target.name, summary(before.mean, before.var), summary(after.mean, after.var), *notes)
