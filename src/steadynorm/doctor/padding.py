"""Detect padding: positions at the ends of an input's axes that repeat each other exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.doctor.batch_evidence import Padding
from steadynorm.statistics import measure

__all__ = ["padding_of"]

_BORDER = 3
"""Outermost positions that may differ: a convolution sees its own zeros there beside the padding."""


def padding_of(x: Tensor) -> Padding | None:
    """Find the axis with the most padding at its ends, and the moments of the positions that are not padding.

    Args:
        x: shape (N, C, ...).
    """
    runs = {axis: _runs(x, axis) for axis in range(2, x.dim()) if _may_repeat(x, axis)}
    shares = {axis: float((first + last).sum()) / (len(x) * x.shape[axis]) for axis, (first, last) in runs.items()}
    axis = max((each for each in shares if 0 < shares[each] < 1), key=lambda each: shares[each], default=None)
    if axis is None:
        return None
    kept = torch.ones((len(x), 1, *x.shape[2:]), dtype=torch.bool, device=x.device)
    for each, ends in runs.items():
        if shares[each] < 1:
            along = [len(x) if at == 0 else x.shape[each] if at == each else 1 for at in range(x.dim())]
            kept &= _between(*ends, x.shape[each]).view(along)
    rest = measure(x.transpose(0, 1)[:, kept.squeeze(1)].unsqueeze(0))
    return Padding(
        share=shares[axis],
        axis=axis,
        ragged=any(bool((each != each[0]).any()) for each in runs[axis]),
        background=_background(x, axis, *runs[axis]),
        mean=rest.mean.to("cpu", torch.float64),
        var=rest.var.to("cpu", torch.float64),
    )


def _may_repeat(x: Tensor, axis: int) -> bool:
    """Return whether neighbours near an axis's ends agree in some sample: in one line of values, then in all."""
    if x.shape[axis] < 2:
        return False
    line = x.movedim(axis, -1)
    while line.dim() > 2:
        line = line.select(1, 0) if line.dim() > 3 or x.dim() == 3 else line.select(1, line.shape[1] // 2)
    few = min(_BORDER + 1, x.shape[axis] - 1)
    if not bool(_agree(line, few).any()):
        return False
    lines = x.movedim(axis, 1).flatten(2)
    return bool((lines[:, 1 : few + 1] == lines[:, :few]).all(2).any()) or bool(
        (lines[:, -few:] == lines[:, -few - 1 : -1]).all(2).any()
    )


def _agree(line: Tensor, few: int) -> Tensor:
    same = line[:, 1:] == line[:, :-1]
    return same[:, :few].any(1) | same[:, -few:].any(1)


def _runs(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Count for each sample the positions at an axis's start, and at its end, that equal each other; shapes (N,)."""
    others = [at for at in range(1, x.dim()) if at != axis]
    length = x.shape[axis]
    same = (x.narrow(axis, 1, length - 1) == x.narrow(axis, 0, length - 1)).all(others)
    last = _run(same.flip(1))
    return torch.where(last < length, _run(same), 0), last


def _run(same: Tensor) -> Tensor:
    """Count the equal positions from the first on, at least two, ignoring a few at the border.

    If they continue to the other end, the positions at this end are short content, not a border.
    """
    found = same.long().cumprod(1).sum(1)
    found = torch.where(found > 0, found + 1, 0)
    for border in range(1, min(_BORDER + 1, same.shape[1])):
        run = same[:, border:].long().cumprod(1).sum(1)
        is_one = (run > 0) & (run + 1 + border < same.shape[1] + 1 - _BORDER)
        found = torch.maximum(found, torch.where(is_one, run + 1 + border, 0))
    return found


def _between(first: Tensor, last: Tensor, length: int) -> Tensor:
    """Return a mask of the positions that are not at the ends, shape (N, length)."""
    at = torch.arange(length, device=first.device)
    return (at >= first.unsqueeze(1)) & (at < length - last.unsqueeze(1))


def _background(x: Tensor, axis: int, first: Tensor, last: Tensor) -> float:
    """Return the fraction of the lines next to the padding that equals the padding.

    It is near 0 for a padded picture, whose edge is straight. An object on a plain background touches such a line only
    in a few places.
    """
    if x.dim() != 4:
        return 0.0
    lines = x.movedim(axis, 2)  # (N, C, length, width)
    length, width = lines.shape[2:]
    inside = _between(*_runs(x, 5 - axis), width) if width > 1 else torch.ones(len(x), 1, dtype=torch.bool)
    shares = []
    for border, outer in ((first, first - 1), (length - 1 - last, length - last)):
        at = ((outer >= 0) & (outer < length) & (first + last < length)).nonzero().flatten()
        alike = (lines[at, :, border[at]] == lines[at, :, outer[at]]).all(1)
        shares.append((alike & inside[at]).sum(1) / inside[at].sum(1).clamp(min=1))
    found = torch.cat(shares)
    return float(found.mean()) if len(found) else 0.0
