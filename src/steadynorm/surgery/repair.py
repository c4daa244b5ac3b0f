"""Running estimates that one bad batch has spoilt, made usable again channel by channel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.statistics import Moments
from steadynorm.surgery.batches import Batches, Forward, feed
from steadynorm.surgery.change import Change, Journal
from steadynorm.surgery.estimation.estimate import Estimator
from steadynorm.surgery.estimation.one_pass import Target
from steadynorm.surgery.estimation.team import Team
from steadynorm.surgery.estimation.write_statistics import begin_anew_, summary, write_statistics_
from steadynorm.surgery.kinds import Norm
from steadynorm.surgery.sites import Where, batch_norms_of

__all__ = ["ABSURD", "repair_statistics_"]

ABSURD = 1e10
"""Mean, or standard deviation, from which on a channel is taken for spoilt.

Far above what data are measured in (seconds since 1970 are 1.7·10⁹), far below where squares overflow in float32
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
        """Where its running estimates are broken; boolean, shape (C,)."""
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
    """Set broken channels' running estimates to mean 0 and variance 1, or to what batches say; leave all others.

    A channel is broken where its mean or variance is NaN or infinite, its variance negative, its mean beyond
    ``absurd`` or its variance beyond the square of that. Frozen layers are repaired too. With ``batches`` broken
    channels get what :func:`recalibrate_` would give them; healthy ones keep theirs bit for bit, and so does
    ``num_batches_tracked``. Batches are looked at only if something is broken.

    Of our layers also: a window or a bank of momenta that is not finite, or belongs to a broken channel, begins anew;
    the noise of a gated layer that is not finite, or negative, is set to 1.

    Args:
        model: the root.
        batches: as for :func:`recalibrate_`; None leaves mean 0 and variance 1.
        where: qualified name and module -> whether it is meant.
        forward: how to run the model on a batch, as for :func:`recalibrate_`.
        absurd: magnitude, positive.

    Returns:
        the Change: notes say how many channels of a layer, and which the first are; ``measured`` has ``channels``,
        all together, and with batches what :func:`recalibrate_` measures.

    Raises:
        ValueError: ``absurd`` is not positive; as :func:`recalibrate_` with batches.

    >>> norm = nn.BatchNorm1d(3)
    >>> _ = norm.running_var[1].fill_(torch.nan)
    >>> print(repair_statistics_(norm))
    repair_statistics_: 1 changed, 0 refused, channels 1
      (the model): mean 0 to 0, variance nan to nan -> mean 0 to 0, variance 1 to 1
        note: 1 of 3 channels was broken: 1
    """
    if not absurd > 0:
        raise ValueError(f"repair_statistics_: absurd must be positive, got {absurd}.")
    source = None if batches is None else Batches(batches, "repair_statistics_")
    with Journal("repair_statistics_", model) as journal:
        found = [_repaired(journal, site.name, site.module, absurd) for site in batch_norms_of(model, where, journal)]
        broken = [each for each in found if each is not None]
        spoilt = [each for each in broken if bool(each.channels.any())]
        measured = {} if source is None or not spoilt else _recalibrate(journal, model, spoilt, source, forward or feed)
        for each in broken:
            after = each.target.stored()
            numbers = (summary(old.mean, old.var) for old in (each.before, after))
            journal.note_changed(each.target.name, *numbers, *each.notes)
        return journal.finish(channels=sum(int(each.channels.sum()) for each in broken), **measured)


def _repaired(journal: Journal, name: str, module: Norm, absurd: float) -> _Broken | None:
    """Reset what is broken in a layer; None where nothing is."""
    notes = _noise_repaired(journal, module)
    if module.running_mean is None or module.running_var is None:
        return None
    target = Target(name=name, module=module)
    before = target.stored()
    healthy = (before.mean.abs() <= absurd) & (before.var >= 0) & (before.var <= absurd**2)
    target = Target(name=name, module=module, channels=~healthy)
    if not bool(healthy.all()):
        mean, var = torch.where(healthy, before.mean, 0), torch.where(healthy, before.var, 1)
        notes = [_which(~healthy), *write_statistics_(journal, module, mean, var), *notes]
    elif _keeps_nonfinite(module):
        notes = ["what it kept beside its running estimates was not finite", *begin_anew_(journal, module), *notes]
    return _Broken(target=target, before=before, notes=notes) if notes else None


def _noise_repaired(journal: Journal, module: Norm) -> list[str]:
    noise = module._buffers.get("noise")
    if noise is None or bool((noise.isfinite() & (noise >= 0)).all()):
        return []
    before = float(noise)
    journal.write_(noise, torch.ones_like(noise))
    return [f"its noise was {before:.4g} and is 1, until training measures it"]


def _keeps_nonfinite(module: Norm) -> bool:
    """Whether a window or a bank would spoil the running estimates at the next batch."""
    kept = [
        each for name, each in module._buffers.items() if name.startswith(("_bank", "_window")) and each is not None
    ]
    return not all(bool(each.isfinite().all()) for each in kept)


def _recalibrate(
    journal: Journal, model: nn.Module, broken: list[_Broken], batches: Batches, forward: Forward
) -> dict[str, float]:
    """Give broken channels what the batches say."""
    verb = journal.verb
    work = Estimator(
        verb, model, [each.target for each in broken], batches=batches, forward=forward, team=Team.alone(verb)
    )
    found = work.run()
    for each, moments in zip(broken, found.moments, strict=True):
        if moments is None:
            each.notes.append("not reached by the batches, so these are mean 0 and variance 1")
        else:
            write_statistics_(journal, each.target.module, moments.mean, moments.var)
    return found.measured()


def _which(broken: Tensor) -> str:
    indices = broken.nonzero().flatten().tolist()
    first = ", ".join(map(str, indices[:_LISTED])) + (", ..." if len(indices) > _LISTED else "")
    return f"{len(indices)} of {len(broken)} channels {'was' if len(indices) == 1 else 'were'} broken: {first}"
