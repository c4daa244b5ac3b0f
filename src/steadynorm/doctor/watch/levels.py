"""Distances between the batches of a stretch of training, and from the batches to the running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from steadynorm.doctor.watch.recorder import Momenta, Rows
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.kinds import eps_of

__all__ = ["Levels", "levels_of", "log_ratio", "standardised"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """Distances of a stretch of T training forwards, layer by layer; NaN without a finite value.

    The batch at the centre has the median of the batches' means and variances, channel by channel. A distance of means
    is in variances, d = exp(meanᶜ ln(1 + (difference)²/(var + eps))) − 1, so that no single channel decides; one of
    variances is q = meanᶜ ln((var + eps)/(other + eps)).
    """

    finite: Tensor
    """Whether the running statistics were finite after the forward, (T, L)."""
    mean: Tensor
    """d of each batch from the one at the centre, (T, L)."""
    var: Tensor
    """q of each batch against the one at the centre, (T, L)."""
    step_mean: Tensor
    """d of each batch from the one before it, (T, L); NaN for the first."""
    running_mean: Tensor
    """d of each batch from the running statistics before it, (T, L): the difference between training and evaluation."""
    running_var: Tensor
    """q of each batch against them, (T, L)."""
    lag_mean: Tensor
    """d of the batches' average from the average of the running statistics before them, (L,)."""
    lag_var: Tensor
    """q of these, (L,)."""
    dead: Tensor
    """Share of the channels whose variance at the centre is below eps, (L,)."""

    def cpu(self) -> Levels:
        """Return the distances on the CPU, in float64, with one transfer."""
        parts = [getattr(self, each.name) for each in fields(self)]
        flat = torch.cat([part.double().flatten() for part in parts]).cpu()
        pieces = torch.split(flat, [part.numel() for part in parts])
        numbers = {
            each.name: piece.view(part.shape) for each, part, piece in zip(fields(self), parts, pieces, strict=True)
        }
        return Levels(**numbers)

    def over(self, ranks: RankGroup) -> Levels:
        """Reduce over all ranks to the value farthest from 0, for ``finite`` the minimum; equal on every rank."""
        if ranks.size == 1:
            return self
        parts = [getattr(self, each.name).double() for each in fields(self)]
        gathered = ranks.gather(torch.cat([part.flatten() for part in parts]))  # (R, numbers)
        size = torch.where(gathered.isnan(), -1.0, gathered.abs())
        farthest = gathered.gather(0, size.argmax(0, keepdim=True))[0]
        pieces = torch.split(farthest, [part.numel() for part in parts])
        merged = {
            each.name: piece.view(part.shape) for each, piece, part in zip(fields(self), pieces, parts, strict=True)
        }
        merged["finite"] = gathered[:, : parts[0].numel()].amin(0).view(parts[0].shape)
        return Levels(**merged)

    @classmethod
    def join(cls, parts: Sequence[Levels]) -> Levels:
        """Concatenate the layers of several devices."""
        return cls(**{each.name: torch.cat([getattr(part, each.name) for part in parts], -1) for each in fields(cls)})


def levels_of(rows: Rows, forwards: int, momenta: Sequence[Momenta]) -> Levels:
    """Measure a stretch of training, without a device synchronization.

    Args:
        rows: running statistics of the stretch.
        forwards: number of filled rows, at least 1.
        momenta: momenta of the layers at each of these forwards.
    """
    layout, by_layer = rows.layout, rows.layout.by_layer
    eps = layout.by_channel([eps_of(each.module) for each in layout.layers], rows.values)
    batches = rows.batches(momenta)
    before = rows.values[:forwards, 0]
    center = _median(batches)
    average, followed = batches.nanmean(0), torch.where(batches.isnan(), torch.nan, before).nanmean(0)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return by_layer(standardised(one[..., 0, :] - other[..., 0, :], other[..., 1, :], eps).log1p()).expm1()

    def ratio(one: Tensor, other: Tensor) -> Tensor:
        return by_layer(log_ratio(one[..., 1, :], other[..., 1, :], eps))

    after = rows.values[:forwards, 1]
    return Levels(
        finite=by_layer(after.isfinite().all(1).to(after.dtype)) == 1,
        mean=distance(batches, center),
        var=ratio(batches, center),
        step_mean=distance(batches, torch.cat((torch.full_like(batches[:1], torch.nan), batches[:-1]))),
        running_mean=distance(batches, before),
        running_var=ratio(batches, before),
        lag_mean=distance(average, followed),
        lag_var=ratio(average, followed),
        dead=by_layer(torch.where(center[1].isnan(), torch.nan, (center[1] < eps).to(center.dtype))),
    )


def _median(values: Tensor) -> Tensor:
    """Return the lower median over the first dimension without NaN; torch's is not deterministic on a GPU."""
    ordered, count = values.sort(0).values, (~values.isnan()).sum(0)
    return ordered.gather(0, ((count - 1).clamp_(min=0) // 2)[None])[0]


def standardised(difference: Tensor, var: Tensor, eps: Tensor) -> Tensor:
    """Return squared differences in units of the variance that a layer divides by."""
    return difference.square() / (var + eps)


def log_ratio(var: Tensor, other: Tensor, eps: Tensor) -> Tensor:
    """Return ln((var + eps)/(other + eps))."""
    return (var + eps).log() - (other + eps).log()
