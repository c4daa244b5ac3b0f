"""Running estimates measured again for the weights as they are."""

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
    """Set the running estimates to the statistics of given data, for the weights as they are.

        mean = Σ x / n        var = Σ (x − mean)² / (n − 1)        over all n values of all batches

    Afterwards, in evaluation over the same batches, the input of each layer has the mean and variance by which the
    layer normalizes it. Values are weighed, not batches; the sums are centred, so no variance is negative. The calls of
    a layer that runs several times in a forward count alike, however many values each has: the average that training
    keeps counts them so, and by values the largest level of a pyramid would decide for all. It takes several passes,
    see ``estimation``, through the model in evaluation (no dropout) and without gradient; modes and random numbers are
    put back, and what raises leaves everything as it was.

    Refused, by name: a layer that the batches do not reach, FrozenBatchNorm, a layer without running statistics, a
    unknown subclass. Without ``where`` also a layer that is in evaluation while the model trains, or has
    ``track_running_stats=False``: it was frozen on purpose. What ``where`` chooses is taken even so.

    ``num_batches_tracked`` stays, because schedules count by it; where it was 0, or momentum is None, which weighs by
    it, it becomes the number of batches. The noise of a gated layer stays.

    Args:
        model: the root; wrapped by DistributedDataParallel or compiled, it runs without that.
        batches: of any kind and size; gone through several times, so what can be only once is kept.
        where: qualified name and module -> whether it is meant.
        forward: model and batch -> anything; None is :func:`feed`: a tensor, (input, ...), or a mapping of arguments.
        prior: samples that the estimates so far count as; n samples of data have the weight n/(prior + n). 0 forgets
            them, 16 is a good start for a few samples of another domain.
        tolerance: largest standard error of any mean, in standard deviations, and any variance, relative, from which
            on no more batches are taken; a channel of variance below eps counts as one of eps. It is measured by how
            batches differ, from 8 batches on. None takes all batches.
        settled: largest movement in a pass, in the same units, that makes it the last. 0 goes on until all is exact.
        passes: most passes; None is one more than calls of layers in a forward, after which a chain is exact.
        process_group: whose ranks' batches count together, as many as each has; None is the default group. Every rank
            must call this. Means what it says only where torch.distributed is set up.

    Returns:
        the Change; ``measured`` has batches, samples, passes, standard_error (NaN for one batch), and moved: by how
        much a number moved in the last pass.

    Raises:
        ValueError: no batches; a batch that is not finite at some layer; one value per channel in all; arguments out
            of range. On every rank, where it happens on one.
        TypeError: ``batches`` is a single batch, or a batch is of no known form.
        RuntimeError: ranks have different layers, or another rank could not go on.

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
                "recalibrate_: with a prior the running estimates must be finite, no variance negative, got others at "
                f"{targets[-1].describe()}. Repair them with repair_statistics_, or leave prior at 0."
            )
    return targets


def _why_not(module: Norm, model: nn.Module, *, chosen: bool) -> str | None:
    """Say why a layer's running estimates are not to be touched; None where they are."""
    if kind_of(module)[0].name == "frozen_batch_norm":
        return "frozen. Use unfreeze_ or convert_ before, if its statistics are to change."
    unreadable = why_not_readable(module)
    if unreadable is not None:
        return unreadable
    if chosen:
        return None
    if model.training and not module.training:
        return "it evaluates while the model trains, so it is taken for frozen on purpose. where=... takes it even so."
    if not getattr(module, "track_running_stats", True):
        return "track_running_stats is False, so it is taken for frozen on purpose. where=... takes it even so."
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
            f"not settled after {found.passes} passes: the last moved it by {unsettled:.2g}. A layer that is called "
            "again on its own output, or batches that differ from pass to pass, do that."
        )
    after = target.stored()
    edits.note_changed(target.name, summary(before.mean, before.var), summary(after.mean, after.var), *notes)
