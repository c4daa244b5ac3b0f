"""One pass over batches, in which layers normalize by given statistics and their inputs are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.functional import valid_positions
from steadynorm.layers import MaskedBatchNorm1d
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.moments import mixture
from steadynorm.surgery.batches import Forward, unwrapped
from steadynorm.surgery.contexts import input_of, replaced_forwards
from steadynorm.surgery.estimation.groups import Groups
from steadynorm.surgery.estimation.pass_correction import PassCorrection
from steadynorm.surgery.kinds import Norm, channels_of, eps_of, label

__all__ = ["Pass", "Target"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A layer whose statistics are to be estimated.

    Args:
        name: qualified name.
        module: with running statistics.
        channels: shape (C,), boolean, on the CPU; the others keep their running statistics. None takes all.
    """

    name: str
    module: Norm
    channels: Tensor | None = None

    def stored(self) -> Moments:
        """Return the running statistics in float64, on the CPU; their count has no meaning."""
        mean, var = (each.detach().cpu().double() for each in (self.module.running_mean, self.module.running_var))
        return Moments(mean=mean, var=var, count=1)

    def estimate(self, found: Moments, weight: float) -> Moments:
        """Blend measured statistics into the running statistics with a weight."""
        stored = Moments(
            mean=self.module.running_mean.to(found.mean), var=self.module.running_var.to(found.var), count=1
        )
        new = found if weight == 1 else stored.blend(found, weight=weight)
        if self.channels is None:
            return new
        channels = self.channels.to(stored.mean.device)
        mean, var = torch.where(channels, new.mean, stored.mean), torch.where(channels, new.var, stored.var)
        return Moments(mean=mean, var=var, count=new.count)

    def largest(self, each: Tensor) -> float:
        """Return the largest value, shape (..., C), over the channels to be estimated; NaN if one is NaN."""
        return float((each if self.channels is None else each[..., self.channels]).max())

    def describe(self) -> str:
        """Name the layer in a message."""
        return f"{label(self.module)} {self.name or '(the model)'!r}"


class Pass:
    """Moments of the targets' inputs while they normalize by the previous pass's result, see :class:`PassCorrection`.

    Args:
        verb: for messages.
        model: the root.
        targets: layers.
        forward: runs the model on a batch.
        before: the previous pass; None makes each target normalize by its batch statistics.
        found: its result, with the unbiased variance; None if it has not reached a target.
        weights: of the result, relative to the running statistics.
    """

    def __init__(
        self,
        verb: str,
        model: nn.Module,
        targets: Sequence[Target],
        forward: Forward,
        before: Pass | None = None,
        found: Sequence[Moments | None] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.groups = [Groups(channels_of(target.module)) for target in targets]
        self.samples = [0] * len(targets)
        self.batches = self.calls = 0
        corrections: Sequence[PassCorrection | None] = [None] * len(targets) if before is None else before._corrections
        totals = [None] * len(targets) if found is None else found
        self._corrections: list[PassCorrection] = [
            PassCorrection(correction, total, eps=eps_of(target.module))
            for target, correction, total in zip(targets, corrections, totals, strict=True)
        ]
        self._weights = [1.0] * len(targets) if weights is None else weights
        self._verb, self._model, self._targets, self._forward = verb, unwrapped(model), targets, forward
        self._heard: list[tuple[int, Moments, int]] = []
        self._forwards = {target.module: self._observed_forward(at, target) for at, target in enumerate(targets)}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Measure the targets' inputs."""
        with replaced_forwards(self._forwards):
            yield
        for correction in self._corrections:
            correction.forget()

    def take(self, batch: Any) -> None:  # noqa: ANN401 (any batch of a loader)
        """Run the model on a batch and add the moments of the targets' inputs.

        Raises:
            ValueError: a target's input is not finite.
        """
        self._heard.clear()
        self._forward(self._model, batch)
        self.batches += 1
        self.calls = max(self.calls, len(self._heard))
        for at, (found, samples) in self._joined().items():
            self.samples[at] += samples
            if found.count:
                self.groups[at].add(found)

    def _joined(self) -> dict[int, tuple[Moments, int]]:
        """Join each target's moments in a forward: calls count equally, as in the running average of training.

        A layer that five levels of a pyramid share has seen each sample once, not five times, and the small levels
        count as much as the large one.
        """
        heard: dict[int, list[tuple[Moments, int]]] = {}
        for at, found, samples in self._heard:
            found = Moments(mean=found.mean.cpu().double(), var=found.var.cpu().double(), count=found.count)
            self._check_finite(self._targets[at], found)
            heard.setdefault(at, []).append((found, samples))
        return {at: (_alike([found for found, _ in each]), max(most for _, most in each)) for at, each in heard.items()}

    def _check_finite(self, target: Target, found: Moments) -> None:
        if found.count and not bool((found.mean.isfinite() & found.var.isfinite()).all()):
            raise ValueError(
                f"{self._verb}: every batch must be finite at every layer, with finite squares, got NaN or infinity "
                f"in the input of {target.describe()} in batch {self.batches}, counted from 1. Leave that batch out, "
                "or find the cause."
            )

    def _observed_forward(self, at: int, target: Target) -> Callable[..., Any]:
        module = target.module

        def forward(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
            found, samples = _measured(module, *arguments, **named)
            self._heard.append((at, found, samples))
            expected = self._corrections[at].add(found)
            with _normalizing_by(module, target.estimate(expected, self._weights[at])):
                return type(module).forward(module, *arguments, **named)

        return forward


@contextmanager
def _normalizing_by(module: nn.Module, moments: Moments) -> Iterator[None]:
    """Make a layer evaluate with other statistics than its own."""
    buffers = module._buffers
    mean, var = stored = buffers["running_mean"], buffers["running_var"]
    buffers["running_mean"], buffers["running_var"] = moments.mean.to(mean), moments.var.to(var)
    try:
        yield
    finally:
        buffers["running_mean"], buffers["running_var"] = stored


def _measured(module: nn.Module, *arguments: Any, **named: Any) -> tuple[Moments, int]:  # noqa: ANN401 (as the layer takes them)
    """Measure the unmasked part of a layer's input, and give its number of samples."""
    x: Tensor = input_of(arguments, named)
    if isinstance(module, MaskedBatchNorm1d):
        mask, lengths = arguments[1] if len(arguments) > 1 else named.get("mask"), named.get("lengths")
        if mask is not None or lengths is not None:
            valid = valid_positions(x, mask, lengths).squeeze(1)
            return measure(x.movedim(1, -1)[valid]), len(x)
    return measure(x), len(x)


def _alike(calls: Sequence[Moments]) -> Moments:
    """Join the moments of several calls with equal weights, regardless of their counts; leave out empty calls."""
    filled = [each for each in calls if each.count] or list(calls[:1])
    if len(filled) == 1:
        return filled[0]
    means, variances = (torch.stack([getattr(each, name) for each in filled]) for name in ("mean", "var"))
    mean, var = mixture(means, variances, means.new_tensor(1 / len(filled)))
    return Moments(mean=mean, var=var, count=sum(each.count for each in filled))
