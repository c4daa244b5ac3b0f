"""What a training leaves in the running estimates, forward by forward, without a pass over the data.

    batch = old + (new − old)/momentum

so the moments that a layer has normalized a batch by are read off its running estimates before and after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from steadynorm.surgery.kinds import Norm
from steadynorm.surgery.named_modules import NamedModule

__all__ = ["Layout", "Rows"]

Momenta = tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """The layers of one device, whose channels lie side by side in a row.

    Args:
        layers: with running estimates, each once.
        standing_in: layer -> running mean and variance that are read and written in place of its own.
    """

    layers: tuple[NamedModule, ...]
    standing_in: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Iterable[NamedModule]) -> list[Layout]:
        """Make one for each device."""
        by_device: dict[torch.device, list[NamedModule]] = {}
        for each in layers:
            by_device.setdefault(_norm(each).running_mean.device, []).append(each)
        return [cls(tuple(group)) for group in by_device.values()]

    @property
    def sizes(self) -> list[int]:
        """Channels of each layer."""
        return [len(_norm(each).running_mean) for each in self.layers]

    def buffers(self) -> list[Tensor]:
        """Give the running means, then the running variances, as they are bound now."""
        own = [each.module._buffers for each in self.layers]
        if not self.standing_in:
            return [each[name] for name in ("running_mean", "running_var") for each in own]  # type: ignore[misc]
        pairs = [self.standing_in.get(each.module) or self.own(each.module) for each in self.layers]
        return [pair[half] for half in (0, 1) for pair in pairs]

    @staticmethod
    def own(module: Norm) -> tuple[Tensor, Tensor]:
        """Give a layer's own running mean and variance."""
        return module.running_mean, module.running_var

    def read(self, out: Tensor) -> None:
        """Copy the running estimates; out has the shape (2, channels)."""
        torch.cat(self.buffers(), out=out.view(-1))

    def write(self, row: Tensor) -> None:
        """Set the running estimates; no version is counted, so that a backward to come may still use them."""
        parts = [part for half in row for part in torch.split(half, self.sizes)]
        with torch.no_grad():
            torch._foreach_copy_([each.data for each in self.buffers()], parts)

    def by_layer(self, values: Tensor) -> Tensor:
        """Average over each layer's channels: (..., channels) -> (..., layers)."""
        return torch.stack([part.mean(-1) for part in torch.split(values, self.sizes, dim=-1)], dim=-1)

    def by_channel(self, values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
        """Repeat a number of each layer for its channels: (layers,) -> (channels,)."""
        numbers = torch.as_tensor(values, dtype=like.dtype, device=like.device)
        return numbers.repeat_interleave(torch.tensor(self.sizes, device=like.device), output_size=sum(self.sizes))


class Rows:
    """Running estimates before and after each forward of a training, up to a number of them.

    Args:
        layout: whose estimates.
        count: of forwards.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        first = layout.buffers()[0]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.values = torch.zeros(count, 2, 2, sum(layout.sizes), dtype=dtype, device=first.device)
        """Forward, before or after, mean or variance, channel."""
        self.spare = torch.zeros_like(self.values[0])
        self.moved = torch.zeros(2, sum(layout.sizes), dtype=torch.bool, device=first.device)
        """Which numbers have changed where nothing was to change."""

    def note_moved(self) -> None:
        """Look which numbers differ between the two spare rows, bit by bit, so that NaN is itself."""
        whole = torch.int64 if self.spare.dtype == torch.float64 else torch.int32
        before, after = self.spare.view(whole)
        self.moved |= before != after

    def batches(self, forwards: int, momenta: Sequence[Momenta]) -> Tensor:
        """Give the moments of the batches, (forwards, 2, channels); NaN where a layer has no momentum, or 0.

        Args:
            forwards: how many of the rows are filled.
            momenta: of the layers at each of these forwards.
        """
        before, after = self.values[:forwards].unbind(1)
        weights = torch.tensor(
            [[each if each else torch.nan for each in row] for row in momenta], dtype=torch.float64
        ).to(before)
        sizes = torch.tensor(self.layout.sizes, device=before.device)
        by_channel = weights.repeat_interleave(sizes, dim=1)[:, None]
        batches = before + (after - before) / by_channel
        batches[:, 1].clamp_(min=0)
        return batches


def _norm(named: NamedModule) -> Norm:
    return named.module
