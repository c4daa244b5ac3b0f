"""A gate for the whole network: by stored, by batch or by tracked statistics, as the stream tells without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from steadynorm.adaptation.calibration import Calibration, calibrate
from steadynorm.adaptation.evidence import Seen, Votes, features
from steadynorm.adaptation.normalizing import stored_moments
from steadynorm.adaptation.order import ClassOrder
from steadynorm.adaptation.tracking import Tracker
from steadynorm.adaptation.window import Window
from steadynorm.statistics import Moments
from steadynorm.surgery.batches import evaluating

__all__ = ["HOLD", "Evidence", "Gate"]

HOLD = 0.5
"""Of the margin that it takes to begin, what it takes to go on."""
SEEN = 2
"""Windows, in images, that must have told of an order before it is believed."""
PATIENCE, CLEAR = 4, 0.05
"""Measured batches in a row with one decision, and distance of the gain above its limit, that make it a sure one; below
it, half of the margin is enough."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the stream has shown up to a batch."""

    mixed: float
    """Towards 1 where there are all classes, towards -1 where few; averaged over the stream."""
    gain: float
    """Accuracy by batch statistics less that by stored statistics, estimated; averaged in the same manner."""
    adapts: bool
    """Whether the batch was predicted by batch statistics."""


class Gate:
    """By stored statistics, by the batch's, or by tracked ones; nothing is learnt from labels or by gradients.

    Where classes are mixed. Each batch is predicted by the stored statistics, and by the moments of the newest batches
    that together have W images (of the batch alone, where it has as many). What such a window shows to the layers and
    in both predictions, see :func:`steadynorm.adaptation.evidence.features`, two regressions judge that were fitted
    to windows of clean images, of few and of all classes, under shifts that were made of them:

        mixed ≈ 1 where the window has all classes, −1 where few
        gain ≈ accuracy by batch statistics − accuracy by stored statistics

    Batch statistics are used for the newest batch where there are W images, mixed > limit and gain > margin on average:
    over the stream, a batch of n images with the weight n/(n + W); and where the window alone is not nearer to what few
    classes come to than to the limit. Limit and margin are what the regressions come to, and err by, on families of
    shifts that they were not fitted to. Where batch statistics were used before, ``HOLD`` of the margin is enough.

    Where classes come in runs. A hidden Markov model follows the predictions of windows that may hold few classes, see
    :class:`ClassOrder`; it begins anew where the images shift, for predictions then change as well. Once it holds an
    order likelier than none, after ``SEEN`` windows or more, batches are predicted by statistics that follow the shift
    and not the classes, see :class:`Tracker`, and each image by its neighbours too: the output is then log p of the
    smoothed probabilities. Images of a batch are taken to be in the order in which they came. It ends where the order
    does.

    Cost: at most one forward more for each batch. While a decision is sure, the path that is not used is run for every
    ``every``-th batch only; what stored statistics said last counts for the others, and they for the evidence of order.

    What is not finite decides for the stored statistics.

    Args:
        calibration: of the network that is going to predict.
        ordered: False leaves the hidden Markov model out.
        every: 1 runs both paths always.
    """

    def __init__(self, calibration: Calibration, *, ordered: bool = True, every: int = 4) -> None:
        self.name = "gate" if ordered else "gate_mixed"
        self.calibration = calibration
        self.evidence: Evidence | None = None
        """After a batch, what it was decided by; None before the first full window, and where classes come in runs."""
        self.order: ClassOrder | None = None
        """What is known of the order of the classes; None where they are surely mixed."""
        self.ordered, self.every = ordered, every
        self._tracker = Tracker(calibration.classes)
        self._window = Window(calibration.images)
        self._is_mixed = self._is_few = False
        self._steady, self._skipped, self._since = 0, 0, 0
        self._before: dict[str, Moments] = {}

    @classmethod
    def calibrate(
        cls,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        images: int = 100,
        seed: int = 0,
        mirrors: bool = False,
    ) -> Self:
        """Measure a network on clean images that it was not trained on, and make its gate; see :func:`calibrate`."""
        return cls(calibrate(model, batches, images=images, seed=seed, mirrors=mirrors))

    @property
    def decision(self) -> str:
        """By what the last batch was predicted: ``stored``, ``batch`` or ``ordered``."""
        if self._is_ordered():
            return "ordered"
        return "batch" if self.evidence is not None and self.evidence.adapts else "stored"

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Predict the stream's next batch (N, C, ...), and remember what it tells."""
        if self._is_ordered():
            return self._by_order(model, x)
        output = self._by_window(model, x)
        return self._see_order(output) if self.ordered else output

    def _is_ordered(self) -> bool:
        """Whether classes come in runs, as enough images say: at first a shift could be meant."""
        order = self.order
        return order is not None and order.is_ordered and order.images >= SEEN * self.calibration.images

    def reset(self) -> None:
        """Forget the stream."""
        self._window.clear()
        self._tracker = Tracker(self.calibration.classes)
        self.evidence = self.order = None
        self._is_mixed = self._is_few = False
        self._steady, self._skipped, self._since = 0, 0, 0
        self._before = {}

    def _by_window(self, model: nn.Module, x: Tensor) -> Tensor:
        """Predict by stored or by batch statistics."""
        adapts = self.evidence is not None and self.evidence.adapts
        alone = self._steady >= PATIENCE and self._skipped < self.every - 1
        self._skipped = self._skipped + 1 if alone else 0
        stored = None if alone and adapts else _evaluate(model, x)
        if alone and stored is not None:
            return stored
        before = self._window.newest
        batch, rows, seen = self._window.predict(model, x)
        votes = Votes.of(batch if stored is None else stored, batch)
        if stored is None and before is not None:
            votes = votes.with_stored_of(before)
        self._window.add(rows, votes)
        self._judge(len(x), seen, stored_moments(model))
        if self.evidence is not None and self.evidence.adapts:
            return batch
        return _evaluate(model, x) if stored is None else stored

    def _judge(self, images: int, seen: Mapping[str, Seen], stored: Mapping[str, Moments]) -> None:
        """Decide by the window, of which the newest ``images`` are the batch."""
        self._is_mixed, self._is_few, before, known = False, False, self.evidence, self.calibration
        if not self._window.is_full():
            return
        mixed, gain = known.judge(features(self._window.votes, seen, stored))
        if not (math.isfinite(mixed) and math.isfinite(gain)):
            self.evidence, self._steady = None, 0
            return
        self._is_mixed, self._is_few = mixed > known.limit, mixed <= known.limit
        is_alone = mixed < (known.few + known.limit) / 2
        if before is not None:
            weight = images / (images + known.images)
            mixed = before.mixed + weight * (mixed - before.mixed)
            gain = before.gain + weight * (gain - before.gain)
        self._see_step(images, {name: each.moments for name, each in seen.items()})
        adapted = before is not None and before.adapts
        margin = HOLD * known.margin if adapted else known.margin
        adapts = not is_alone and mixed > known.limit and gain > margin
        if adapts != adapted:
            self.order = None  # predictions by other statistics differ in a manner that is no order
        far = gain > margin + CLEAR if adapts else gain < margin / 2
        same = before is not None and adapts == adapted and self._is_mixed and far
        self._steady = self._steady + 1 if same else 0
        self.evidence = Evidence(mixed=mixed, gain=gain, adapts=adapts)

    def _see_step(self, images: int, moments: Mapping[str, Moments]) -> None:
        """Begin the order anew where the images have shifted since a window before: predictions have, too."""
        self._since += images
        if self._before and self._since < self.calibration.images:
            return
        if self._before and self.calibration.steps.between(self._before, moments) > 1:
            self.order = None
        self._before, self._since = {name: moments[name] for name in self.calibration.steps.apart}, 0

    def _see_order(self, output: Tensor) -> Tensor:
        """Follow the classes where they are not surely mixed; give what their order makes of the output, if any."""
        if self._is_mixed or output.dim() > 2 or not output.isfinite().all():
            self.order = None
            return output
        if not self._is_few:
            return output
        self.order = self.order or ClassOrder(output.shape[1])
        found = self.order.follow(output.float().softmax(1))
        if not self._is_ordered():
            return output
        self._window.clear()
        self._tracker = Tracker(self.calibration.classes)
        self.evidence, self._before, self._since, self._steady, self._skipped = None, {}, 0, 0, 0
        return found.log()

    def _by_order(self, model: nn.Module, x: Tensor) -> Tensor:
        """Predict by tracked statistics and by neighbours, and track."""
        assert self.order is not None
        output = self._tracker.predict(model, x)
        if not output.isfinite().all():
            self.reset()
            return _evaluate(model, x)
        found = self.order.follow(output.float().softmax(1))
        self._tracker.learn(model, x, found)
        return found.log()

    def state(self) -> dict[str, Tensor]:
        """Give all that is remembered of the stream, as tensors."""
        flags = [self._is_mixed, self._is_few, self._steady, self._skipped, self._since]
        found = {"gate": torch.tensor([float(each) for each in flags], dtype=torch.float64)}
        if self.evidence is not None:
            seen = [self.evidence.mixed, self.evidence.gain, float(self.evidence.adapts)]
            found["evidence"] = torch.tensor(seen, dtype=torch.float64)
        parts: dict[str, Mapping[str, Tensor]] = {"window": self._window.state(), "tracker": self._tracker.state()}
        parts["before"] = {name: torch.stack((each.mean, each.var)) for name, each in self._before.items()}
        if self.order is not None:
            parts["order"] = self.order.state()
        return found | {f"{part}.{name}": each for part, state in parts.items() for name, each in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        self.reset()
        is_mixed, is_few, steady, skipped, since = state["gate"].tolist()
        self._is_mixed, self._is_few = bool(is_mixed), bool(is_few)
        self._steady, self._skipped, self._since = int(steady), int(skipped), int(since)
        self._before = {
            name: Moments(mean=rows[0], var=rows[1], count=0) for name, rows in _part(state, "before").items()
        }
        if "evidence" in state:
            mixed, gain, adapts = state["evidence"].tolist()
            self.evidence = Evidence(mixed=mixed, gain=gain, adapts=bool(adapts))
        self._window.load(_part(state, "window"))
        self._tracker.load(_part(state, "tracker"))
        order = _part(state, "order")
        if order:
            self.order = ClassOrder.of(order)


def _evaluate(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        return cast(Tensor, model(x))


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): each for key, each in state.items() if key.startswith(f"{name}.")}
