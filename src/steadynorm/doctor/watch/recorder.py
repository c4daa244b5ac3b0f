"""Recover each batch's moments from the running statistics, forward by forward, without a pass over the data.

    batch = old + (new − old)/w        w = 1 − (1 − momentum)ⁿ

so the batch statistics of a layer follow from its running statistics before and after the forward; for a layer that
the forward calls n times (by its counter), this is the weighted average over the n calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import is_

import torch
from torch import Tensor, nn

from steadynorm.surgery.kinds import Norm
from steadynorm.surgery.named_modules import NamedModule

__all__ = ["Layout", "Rows"]

Momenta = tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """The layers of one device, with their channels concatenated in one row.

    Args:
        layers: layers with running statistics, each once.
        standing_in: layer -> running mean and variance that are read and written instead of its own.
    """

    layers: tuple[NamedModule, ...]
    standing_in: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Iterable[NamedModule]) -> list[Layout]:
        """Make one layout for each device."""
        by_device: dict[torch.device, list[NamedModule]] = {}
        for each in layers:
            by_device.setdefault(_norm(each).running_mean.device, []).append(each)
        return [cls(tuple(group)) for group in by_device.values()]

    @property
    def sizes(self) -> list[int]:
        """Channels of each layer."""
        return [len(_norm(each).running_mean) for each in self.layers]

    def buffers(self) -> list[Tensor]:
        """Return the running means, then the running variances, as currently bound."""
        own = [each.module._buffers for each in self.layers]
        if not self.standing_in:
            return [each[name] for name in ("running_mean", "running_var") for each in own]  # type: ignore[misc]
        pairs = [self.standing_in.get(each.module) or self.own(each.module) for each in self.layers]
        return [pair[half] for half in (0, 1) for pair in pairs]

    @staticmethod
    def own(module: Norm) -> tuple[Tensor, Tensor]:
        """Return a layer's own running mean and variance."""
        return module.running_mean, module.running_var

    def read(self, out: Tensor) -> None:
        """Copy the running statistics into out, shape (2, channels)."""
        torch.cat(self.buffers(), out=out.view(-1))

    def count(self, out: Tensor) -> None:
        """Copy the layers' counters of batches into out, shape (layers,); 0 without a counter."""
        counters = [each.module._buffers.get("num_batches_tracked") for each in self.layers]
        torch.stack([out.new_zeros(()) if each is None else each for each in counters], out=out)

    def lost(self) -> str | None:
        """Say which layer lost its running statistics, or that devices now differ; None if all is well."""
        devices = set()
        for each in self.layers:
            own = self.own(each.module)
            if not all(isinstance(half, Tensor) for half in own):
                return f"{each.name} no longer has running statistics"
            devices |= {half.device for half in own}
        return None if len(devices) == 1 else "layers that were on one device are on several now"

    def follow(self) -> None:
        """Move the separate estimates to the device and dtype of the layers."""
        for module, pair in self.standing_in.items():
            mean, var = (half.to(own) for half, own in zip(pair, self.own(module), strict=True))
            self.standing_in[module] = mean, var

    def write(self, row: Tensor) -> None:
        """Set the running statistics without a version bump, so that a pending backward may still use them."""
        parts = [part for half in row for part in torch.split(half, self.sizes)]
        with torch.no_grad():
            torch._foreach_copy_([each.data for each in self.buffers()], parts)

    def by_layer(self, values: Tensor) -> Tensor:
        """Average over each layer's channels: (..., channels) -> (..., layers)."""
        return torch.stack([part.mean(-1) for part in torch.split(values, self.sizes, dim=-1)], dim=-1)

    def by_channel(self, values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
        """Repeat each layer's value for its channels: (layers,) -> (channels,)."""
        numbers = torch.as_tensor(values, dtype=like.dtype, device=like.device)
        return numbers.repeat_interleave(torch.tensor(self.sizes, device=like.device), output_size=sum(self.sizes))


class Rows:
    """Running statistics before and after each forward of a training, up to a number of them.

    Args:
        layout: whose running statistics.
        count: of forwards.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        self._known = layout.buffers()
        dtype, device = _dtype_of(self._known), self._known[0].device
        self.sizes = layout.sizes
        self.values = torch.zeros(count, 2, 2, sum(self.sizes), dtype=dtype, device=device)
        """Forward, before or after, mean or variance, channel."""
        self.calls = torch.zeros(count, len(self.sizes), dtype=torch.int64, device=device)
        """Batches that each layer counted in each forward."""
        self.spare = torch.zeros_like(self.values[0])
        self.moved = torch.zeros(2, sum(layout.sizes), dtype=torch.bool, device=device)
        """Mask of values that changed in forwards that should change nothing."""

    def fits(self) -> bool:
        """Whether the layers still have the same dtype and device."""
        layers = [each.module._buffers for each in self.layout.layers]
        buffers = [each.get(name) for name in ("running_mean", "running_var") for each in layers]
        if len(buffers) == len(self._known) and all(map(is_, buffers, self._known)):
            return True
        if any(each is None or each.device != self.values.device for each in buffers):
            return False
        self._known = [each for each in buffers if each is not None]
        return [len(each) for each in self._known] == 2 * self.sizes and _dtype_of(self._known) == self.values.dtype

    def read(self, forward: int | None, *, after: bool) -> None:
        """Read the running statistics before or after a forward; None for a forward outside training."""
        self.layout.read((self.spare if forward is None else self.values[forward])[int(after)])
        if forward is not None:
            now = self.calls[forward]
            before = now.clone() if after else None
            self.layout.count(now)
            if before is not None:
                now -= before

    def note_moved(self) -> None:
        """Mark values that differ between the two spare rows, bitwise, so that NaN equals itself."""
        whole = torch.int64 if self.spare.dtype == torch.float64 else torch.int32
        before, after = self.spare.view(whole)
        self.moved |= before != after

    def weights(self, momenta: Sequence[Momenta]) -> Tensor:
        """Return the weight of each forward's batch in the running statistics after it, (forwards, channels).

        NaN where a layer has no momentum, or 0, or its running statistics have not moved: not called, or frozen.

        Args:
            momenta: of the layers at each of the forwards.
        """
        before, after = self.values[: len(momenta)].unbind(1)
        moved = self.layout.by_layer((before != after).any(1).to(before.dtype)) > 0
        once = torch.tensor([[each or torch.nan for each in row] for row in momenta], dtype=torch.float64).to(before)
        calls = self.calls[: len(momenta)]
        weights = torch.where(calls > 1, 1 - (1 - once) ** calls, once).masked_fill(~moved, torch.nan)
        sizes = torch.tensor(self.sizes, device=before.device)
        return weights.repeat_interleave(sizes, dim=1, output_size=sum(self.sizes))

    def batches(self, momenta: Sequence[Momenta]) -> Tensor:
        """Return the moments of the batches, (forwards, 2, channels); NaN where they have no weight.

        Args:
            momenta: of the layers at each of the forwards.
        """
        before, after = self.values[: len(momenta)].unbind(1)
        batches = before + (after - before) / self.weights(momenta)[:, None]
        batches[:, 1].clamp_(min=0)
        return batches


def _dtype_of(buffers: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(each.dtype == torch.float64 for each in buffers) else torch.float32


def _norm(named: NamedModule) -> Norm:
    return named.module
