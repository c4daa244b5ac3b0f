"""A gate for the whole network: stored or batch statistics, by what their predictions tell without labels."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor, nn

from steadynorm.adaptation.calibration import Calibration
from steadynorm.adaptation.evidence import Votes, deviation, information
from steadynorm.adaptation.normalizing import normalizing_by, stored_moments
from steadynorm.statistics import Moments, as_row, measure, pool
from steadynorm.surgery.batches import evaluating

__all__ = ["HOLD_FLOOR", "HOLD_MARGIN", "Evidence", "Gate"]

HOLD_FLOOR, HOLD_MARGIN = 0.95, 0.5  # of what it takes to begin


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the stream has shown up to a batch."""

    information: float
    """Of the predictions by batch statistics, in nats; averaged over the stream."""
    gain: float
    """Accuracy by batch statistics less that by stored ones, estimated; averaged in the same manner."""
    adapts: bool
    """Whether the batch was predicted by batch statistics."""


class Gate:
    """By stored statistics, or by the batch's where three things speak for it; nothing is learnt at test time.

    Each batch is predicted twice: by the stored statistics, and by the moments of the newest batches that together
    have W images (of the batch alone, where it has as many). Over such a window

        I = H(mean p) − mean H(p)            information of the predictions p by the window's moments
        s = medianˡ deviation_l / usual_l    shift; deviation = √ meanᶜ ln²(var / stored var), usual of one class
        κ = mean max p′                      confidence of the predictions p′ by stored statistics
        gain = (intercept + slope·I) − (κ − DISCOUNT·s)

    Batch statistics are used for the newest batch where there are W images, I > floor in the window and on average,
    and gain > margin on average: over the stream, a batch of n images with the weight n/(n + W). So a shift is judged
    by all that has been seen, for it lasts, and a window of one class is believed at once, for classes change. Where
    batch statistics were used before, ``HOLD_FLOOR`` of the floor and ``HOLD_MARGIN`` of the margin are enough: a
    shift that is found is not lost again to a batch that happens to tell little.

    Why: batch statistics remove what all images of a batch have in common. That is the shift where classes are mixed,
    and the class where they are not. I tells these apart, whether images are corrupted or not, because without their
    class the images are spread over the others without confidence; it predicts the accuracy by batch statistics.
    Confidence predicts that by stored ones, but too high under a shift, which s discounts: variances of most layers
    move then by more than the choice of classes moves them.

    Numbers other than these three are the network's own, from :func:`steadynorm.adaptation.calibrate`.
    What is not finite decides for the stored statistics.

    Args:
        calibration: of the network that is going to predict.
    """

    name = "gate"

    def __init__(self, calibration: Calibration) -> None:
        self.evidence: Evidence | None = None
        """After a batch, what it was decided by; None before the first full window."""
        self._calibration = calibration
        self._window: deque[_Seen] = deque()

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Predict the batch both ways, and give one of the two."""
        with evaluating(model):
            stored = cast(Tensor, model(x))
        self._drop(len(x))
        batch, rows, moments = self._by_window(model, x)
        self._window.append(_Seen(rows=rows, votes=Votes.of(stored, batch)))
        self._decide(len(x), deviation(moments, stored_moments(model)))
        return batch if self.evidence is not None and self.evidence.adapts else stored

    def reset(self) -> None:
        """Forget the window and the evidence."""
        self._window.clear()
        self.evidence = None

    def _drop(self, coming: int) -> None:
        """Forget the oldest batches that a full window does not need."""
        held = coming + sum(each.votes.images for each in self._window)
        while self._window and held - self._window[0].votes.images >= self._calibration.images:
            held -= self._window.popleft().votes.images

    def _by_window(self, model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Moments]]:
        """Give the output by the window's moments, the batch's own as rows, and the window's."""
        rows: dict[str, Tensor] = {}
        moments: dict[str, Moments] = {}

        def choose(name: str, input: Tensor, stored: Moments) -> Moments:
            rows[name] = as_row(measure(input))
            moments[name] = pool(torch.stack([*(each.rows[name] for each in self._window), rows[name]]))[0]
            return moments[name]

        with normalizing_by(model, choose):
            return cast(Tensor, model(x)), rows, moments

    def _decide(self, images: int, deviations: Mapping[str, float]) -> None:
        votes = reduce(add, (each.votes for each in self._window))
        if votes.images < self._calibration.images:
            return
        told, gain = information(votes), self._calibration.gain(votes, deviations)
        if not (math.isfinite(told) and math.isfinite(gain)):
            self.evidence = None
            return
        average = told
        if self.evidence is not None:
            weight = images / (images + self._calibration.images)
            average = self.evidence.information + weight * (told - self.evidence.information)
            gain = self.evidence.gain + weight * (gain - self.evidence.gain)
        floor, margin = self._calibration.floor, self._calibration.margin
        if self.evidence is not None and self.evidence.adapts:
            floor, margin = HOLD_FLOOR * floor, HOLD_MARGIN * margin
        adapts = min(told, average) > floor and gain > margin
        self.evidence = Evidence(information=average, gain=gain, adapts=adapts)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is kept of a batch: for each layer its moments as a row, and the votes."""

    rows: Mapping[str, Tensor]
    votes: Votes
