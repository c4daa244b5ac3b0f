"""The previous pass's statistics of a layer's input, corrected by the inputs that the current pass has seen.

Without the correction, errors grow from layer to layer before they vanish. Let the scale of the first layer's input
be off by d(1) in one pass and by d(2) in the next, and let each layer divide by the previous pass's result. Then the
second layer's input is off by d(2) − d(1), the third's by the difference of such differences, and the k-th's by up to
2^k·d: 39 layers reached 10¹⁰. The inputs that this pass has seen so far show how the whole input has changed, and the
statistics are changed with it. Once nothing changes, the correction is zero, so the fixed point is the same.
"""

from __future__ import annotations

import torch

from steadynorm.statistics import Moments

__all__ = ["PassCorrection"]

MOST_STEPS = 64
"""Calls after which the change is known well enough; this bounds the memory."""


class PassCorrection:
    """Moments of a layer's first input in a pass, of its first two together, and so on.

    Args:
        before: the previous pass; None for the first.
        total: its moments of all inputs, on any device.
        eps: the layer's.
    """

    def __init__(self, before: PassCorrection | None = None, total: Moments | None = None, *, eps: float) -> None:
        self._before, self._total, self._eps = before, total, eps
        self._found: list[Moments] = []
        self._steps: list[Moments] = []

    def forget(self) -> None:
        """Release the previous pass, once this one is over."""
        self._before = self._total = None

    def add(self, found: Moments) -> Moments:
        """Add the moments of another input, and predict those of all inputs in this pass.

            ratio = √((now.var + eps) / (then.var + eps))
            mean = now.mean + (total.mean − then.mean)·ratio        var = total.var·ratio²

        ``then`` and ``now`` are of the inputs so far, in the previous pass and in this one. In the first pass the
        result is the moments of the input alone.
        """
        wide = torch.float32 if found.mean.device.type == "mps" else torch.float64
        found = Moments(mean=found.mean.to(wide), var=found.var.to(wide), count=found.count)
        if len(self._found) < MOST_STEPS:
            self._found.append(found)
        if self._before is None or self._total is None or not self._before._found:
            return found
        now, then = self._after(len(self._found)), self._before._after(len(self._found))
        ratio = ((now.var + self._eps) / (then.var + self._eps)).sqrt()
        mean = now.mean + (self._total.mean.to(now.mean) - then.mean) * ratio
        return Moments(mean=mean, var=self._total.var.to(now.var) * ratio.square(), count=self._total.count)

    def _after(self, number: int) -> Moments:
        """Return the moments of the first ``number`` inputs together, or of all if fewer; computed on demand."""
        while len(self._steps) < min(number, len(self._found)):
            found = self._found[len(self._steps)]
            zero = torch.zeros_like(found.mean)
            so_far = self._steps[-1] if self._steps else Moments(mean=zero, var=zero, count=0)
            self._steps.append(so_far.merge(found))
        return self._steps[:number][-1]
