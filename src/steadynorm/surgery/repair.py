"""Repair running statistics that a bad batch has corrupted, channel by channel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.layers.base import BatchNormBase
from steadynorm.statistics import Moments
from steadynorm.surgery.batches import Batches, Forward, feed
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.estimation.estimate import Estimator
from steadynorm.surgery.estimation.one_pass import Target
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.estimation.write_statistics import forget_batches_, summary, write_statistics_
from steadynorm.surgery.kinds import Norm, label
from steadynorm.surgery.named_modules import Where, batch_norms_of
from steadynorm.surgery.runnable import why_not_readable

__all__ = ["ABSURD", "repair_statistics_"]

ABSURD = 1e10
"""Mean or standard deviation above which a channel counts as corrupted.

Far above usual data (seconds since 1970 are 1.7·10⁹), far below the limit where squares overflow in float32
(1.8·10¹⁹).
"""
_LISTED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class _Broken:
    """A layer with something to repair."""

    target: Target
    before: Moments
    notes: list[str]

    @property
    def channels(self) -> Tensor:
        """The broken channels; boolean, shape (C,)."""
        assert self.target.channels is not None
        return self.target.channels


def repair_statistics_(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    where: Where | None = None,
    forward: Forward | None = None,
    absurd: float = ABSURD,
) -> Change:
    """Repair broken channels of the running statistics, and leave the others unchanged.

    A mean is broken if it is NaN, infinite or larger than ``absurd`` in magnitude; a variance if it is NaN, infinite,
    negative or larger than ``absurd`` squared. Without ``batches`` a broken mean becomes 0 and a broken variance 1,
    each independently. With ``batches`` a channel with either broken gets both as :func:`recalibrate_` would set them.
    ``num_batches_tracked`` is kept. Frozen layers are repaired too. Batches are used only if something is broken.

    In our layers, a window or bank of momenta that is not finite, or that belongs to a broken channel, restarts; a
    noise that is not finite or negative becomes 1.

    Args:
        model: the root module.
        batches: as for :func:`recalibrate_`; None sets broken means to 0 and broken variances to 1.
        where: (qualified name, module) -> whether to repair it; None takes all.
        forward: how to run the model on a batch; None calls it as :func:`steadynorm.surgery.batches.feed` does.
        absurd: largest plausible magnitude of a mean or standard deviation, positive.

    Returns:
        the Change. Its notes list the broken channels; ``measured`` has ``channels``, their number, and with batches
            what :func:`recalibrate_` measures.

    Raises:
        ValueError: ``absurd`` is not positive; with batches, as :func:`recalibrate_`.

    >>> norm = nn.BatchNorm1d(3)
    >>> _ = norm.running_var[1].fill_(torch.nan)
    >>> print(repair_statistics_(norm))
    repair_statistics_: 1 changed, 0 refused, channels 1
      (the model): mean 0 to 0, variance nan to nan -> mean 0 to 0, variance 1 to 1
        note: 1 of 3 channels was broken: 1 (the mean is healthy in 1)
    """
    if not absurd > 0:
        raise ValueError(f"repair_statistics_: absurd must be positive, got {absurd}.")
    source = None if batches is None else Batches(batches, "repair_statistics_")
    with Transaction("repair_statistics_", model) as edits:
        found = [_repaired(edits, named.name, named.module, absurd) for named in batch_norms_of(model, where, edits)]
        broken = [each for each in found if each is not None]
        bad = [each for each in broken if bool(each.channels.any())]
        measured = {} if source is None or not bad else _recalibrate(edits, model, bad, source, forward or feed)
        for each in broken:
            after = each.target.stored()
            numbers = (summary(old.mean, old.var) for old in (each.before, after))
            edits.note_changed(each.target.name, *numbers, *each.notes)
        return edits.finish(channels=sum(int(each.channels.sum()) for each in broken), **measured)


def _repaired(edits: Transaction, name: str, module: Norm, absurd: float) -> _Broken | None:
    """Reset broken values in a layer; None if there are none."""
    why = why_not_readable(module)
    if why is not None:
        if module.running_mean is not None:
            edits.refuse(name, label(module), why)
        return None
    notes = _noise_repaired(edits, module)
    target = Target(name=name, module=module)
    before = target.stored()
    mean_fits = before.mean.isfinite() & (before.mean.abs() <= absurd)
    var_fits = before.var.isfinite() & (before.var >= 0) & (before.var.sqrt() <= absurd)
    target = Target(name=name, module=module, channels=~(mean_fits & var_fits))
    if not bool((mean_fits & var_fits).all()):
        mean, var = torch.where(mean_fits, before.mean, 0), torch.where(var_fits, before.var, 1)
        notes = [_which(mean_fits, var_fits), *write_statistics_(edits, module, mean, var), *notes]
    elif _keeps_nonfinite(module):
        notes = [
            "its window or bank was not finite",
            *forget_batches_(edits, module),
            *notes,
        ]
    return _Broken(target=target, before=before, notes=notes) if notes else None


def _noise_repaired(edits: Transaction, module: Norm) -> list[str]:
    noise = module._buffers.get("noise")
    if noise is None or bool((noise.isfinite() & (noise >= 0)).all()):
        return []
    before = float(noise)
    edits.write_(noise, torch.ones_like(noise))
    return [f"its noise was {before:.4g} and is reset to 1 until training measures it"]


def _keeps_nonfinite(module: Norm) -> bool:
    """Whether a window or a bank would corrupt the running statistics at the next batch."""
    return isinstance(module, BatchNormBase) and not module.batch_memory().is_finite()


def _recalibrate(
    edits: Transaction, model: nn.Module, broken: list[_Broken], batches: Batches, forward: Forward
) -> dict[str, float]:
    """Measure broken channels on the batches."""
    verb = edits.verb
    work = Estimator(
        verb,
        model,
        [each.target for each in broken],
        batches=batches,
        forward=forward,
        group=RankGroup(verb, model, alone=True),
    )
    found = work.run()
    for each, moments in zip(broken, found.moments, strict=True):
        if moments is None:
            each.notes.append("not reached by the batches, so broken means are 0 and broken variances 1")
        else:
            write_statistics_(edits, each.target.module, moments.mean, moments.var)
    return found.measured()


def _which(mean_fits: Tensor, var_fits: Tensor) -> str:
    """Say which channels are broken, and where only the mean or only the variance is."""
    broken = ~(mean_fits & var_fits)
    number = int(broken.sum())
    text = f"{number} of {len(broken)} channels {'was' if number == 1 else 'were'} broken: {_first(broken)}"
    parts = [
        f"the {name} is healthy in {_first(fits & broken)}"
        for name, fits in (("mean", mean_fits), ("variance", var_fits))
        if bool((fits & broken).any())
    ]
    return text + (f" ({' and '.join(parts)})" if parts else "")


def _first(chosen: Tensor) -> str:
    indices = chosen.nonzero().flatten().tolist()
    return ", ".join(map(str, indices[:_LISTED])) + (", ..." if len(indices) > _LISTED else "")
