"""A gate for the whole network: running, batch or tracked statistics, chosen for each batch without labels."""

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

RISK = 0.05
"""Largest expected loss if the classes are few, as a share of the gain."""
HOLD = 0.5
"""Share of the margin that is enough to continue."""
SEEN = 2
"""Windows, in images, that must show an order before the gate follows it."""
PATIENCE, CLEAR = 4, 0.05
"""Number of equal decisions in a row, and distance of the gain above the margin, that make a decision certain; below
the margin, half of it is enough."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Estimates from the stream up to a batch."""

    mixed: float
    """Near 1 if the stream holds all classes, near −1 if few; averaged over the stream."""
    gain: float
    """Estimated accuracy with batch statistics minus that with running statistics; averaged over the stream."""
    right: float
    """Estimated accuracy with running statistics; averaged over the stream."""
    adapts: bool
    """Whether the batch was predicted by batch statistics."""


class Gate:
    """Choose for each batch between running, batch and tracked statistics, without labels or gradients.

    **Mixed classes.** The gate predicts each batch twice: with the running statistics, and with the moments of the
    newest batches that together hold W images (of the batch alone if it is that large). Two regressions judge this
    window from what the layers see and from both predictions (:func:`steadynorm.adaptation.evidence.features`). They
    are fitted to windows of clean and synthetically shifted images, of few and of all classes:

        mixed ≈ 1 if the window holds all classes, −1 if few
        gain  ≈ accuracy with batch statistics − accuracy with running statistics

    The newest batch is predicted with batch statistics if the window is full, mixed > limit and gain > margin. Both are
    averaged over the stream (a batch of n images has weight n/(n + W)), and the window alone must be nearer to the
    limit than to a typical window of few classes. Limit and margin come from the regressions' predictions for shift
    families that were left out of the fit. The limit is higher if more is at stake:

        P(mixed > limit | few classes) · stake ≤ RISK · gain        stake = max over classes of mean p − mean p′

    p and p′ are the predictions with running and batch statistics. The stake is the loss if all images were of one
    class. Once batch statistics are in use, ``HOLD`` times the margin is enough to
    continue.

    **Classes in runs.** A hidden Markov model (:class:`ClassOrder`) follows the predictions of windows that may hold
    few classes; it restarts when the images shift. It needs an estimated accuracy of at least half of the clean
    accuracy, because a network that is mostly wrong makes mistakes that look like an order. Once an order is more
    likely than none, after ``SEEN`` windows or more, batches are predicted with statistics that follow the shift and
    not the classes (:class:`Tracker`), and each image is smoothed with its neighbours: the output is then the log of
    the smoothed probabilities. Images of a batch must be in stream order. When the order ends, the gate returns to the
    first mode.

    Cost: at most one more forward per batch. While a decision is certain, the unused path runs only for every
    ``every``-th batch. Non-finite values select the running statistics.

    Args:
        calibration: from :func:`calibrate`, for the network that predicts.
        ordered: False disables the hidden Markov model.
        every: how often both paths run while a decision is certain; 1 always runs both.
    """

    def __init__(self, calibration: Calibration, *, ordered: bool = True, every: int = 4) -> None:
        self.name = "gate" if ordered else "gate_mixed"
        self.calibration = calibration
        self.evidence: Evidence | None = None
        """Basis of the last decision; None before the first full window, and while classes come in runs."""
        self.order: ClassOrder | None = None
        """State of the hidden Markov model; None while classes are clearly mixed."""
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
        """Calibrate a gate on clean images that the network was not trained on.

        Takes the arguments of :func:`calibrate`.
        """
        return cls(calibrate(model, batches, images=images, seed=seed, mirrors=mirrors))

    @property
    def decision(self) -> str:
        """Which statistics predicted the last batch: ``stored`` (running), ``batch`` or ``ordered``."""
        if self._is_ordered():
            return "ordered"
        return "batch" if self.evidence is not None and self.evidence.adapts else "stored"

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Predict the next batch of the stream, shape (N, C, ...), and update the memory."""
        if self._is_ordered():
            return self._by_order(model, x)
        output = self._by_window(model, x)
        return self._see_order(output) if self.ordered else output

    def _is_ordered(self) -> bool:
        """Whether enough images show that classes come in runs; at first it could be a shift."""
        order = self.order
        return order is not None and order.is_ordered and order.images >= SEEN * self.calibration.images

    def reset(self) -> None:
        """Forget the stream: the next batch is the first of a new one."""
        self._window.clear()
        self._tracker = Tracker(self.calibration.classes)
        self.evidence = self.order = None
        self._is_mixed = self._is_few = False
        self._steady, self._skipped, self._since = 0, 0, 0
        self._before = {}

    def _by_window(self, model: nn.Module, x: Tensor) -> Tensor:
        """Predict with running or with batch statistics."""
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
        """Decide by the window, which ends with the batch of ``images``."""
        self._is_mixed, self._is_few, before, known = False, False, self.evidence, self.calibration
        if not self._window.is_full():
            return
        mixed, gain, right = known.judge(features(self._window.votes, seen, stored))
        if not all(math.isfinite(each) for each in (mixed, gain, right)):
            self.evidence, self._steady = None, 0
            return
        self._is_mixed = mixed > known.limit(1)
        self._is_few, newest = not self._is_mixed, mixed
        if before is not None:
            weight = images / (images + known.images)
            mixed = before.mixed + weight * (mixed - before.mixed)
            gain = before.gain + weight * (gain - before.gain)
            right = before.right + weight * (right - before.right)
        self._see_step(images, {name: each.moments for name, each in seen.items()})
        adapted = before is not None and before.adapts
        margin = HOLD * known.margin if adapted else known.margin
        limit = known.limit(RISK * gain / max(self._window.votes.at_stake, RISK))
        is_alone = newest < (known.few + limit) / 2
        adapts = not is_alone and mixed > limit and gain > margin
        if adapts != adapted:
            self.order = None  # a change of statistics changes the predictions, which is no order
        far = gain > margin + CLEAR if adapts else gain < margin / 2
        same = before is not None and adapts == adapted and self._is_mixed and far
        self._steady = self._steady + 1 if same else 0
        self.evidence = Evidence(mixed=mixed, gain=gain, right=right, adapts=adapts)

    def _see_step(self, images: int, moments: Mapping[str, Moments]) -> None:
        """Restart the order if the images have shifted since the previous window, because predictions shift too."""
        self._since += images
        if self._before and self._since < self.calibration.images:
            return
        if self._before and self.calibration.steps.between(self._before, moments) > 1:
            self.order = None
        self._before, self._since = {name: moments[name] for name in self.calibration.steps.apart}, 0

    def _see_order(self, output: Tensor) -> Tensor:
        """Follow the classes unless they are surely mixed; return the smoothed output if they have an order."""
        blind = self.evidence is not None and self.evidence.right < self.calibration.least
        if self._is_mixed or blind or output.dim() > 2 or not output.isfinite().all():
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
        """Predict with tracked statistics and neighbours, and update the tracker."""
        assert self.order is not None
        output = self._tracker.predict(model, x)
        if not output.isfinite().all():
            self.reset()
            return _evaluate(model, x)
        found = self.order.follow(output.float().softmax(1))
        self._tracker.learn(model, x, found)
        return found.log()

    def state(self) -> dict[str, Tensor]:
        """Return the memory of the stream as tensors."""
        flags = [self._is_mixed, self._is_few, self._steady, self._skipped, self._since]
        found = {"gate": torch.tensor([float(each) for each in flags], dtype=torch.float64)}
        if self.evidence is not None:
            kept = self.evidence
            seen = [kept.mixed, kept.gain, kept.right, float(kept.adapts)]
            found["evidence"] = torch.tensor(seen, dtype=torch.float64)
        parts: dict[str, Mapping[str, Tensor]] = {"window": self._window.state(), "tracker": self._tracker.state()}
        parts["before"] = {name: torch.stack((each.mean, each.var)) for name, each in self._before.items()}
        if self.order is not None:
            parts["order"] = self.order.state()
        return found | {f"{part}.{name}": each for part, state in parts.items() for name, each in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore a memory that :meth:`state` returned."""
        self.reset()
        is_mixed, is_few, steady, skipped, since = state["gate"].tolist()
        self._is_mixed, self._is_few = bool(is_mixed), bool(is_few)
        self._steady, self._skipped, self._since = int(steady), int(skipped), int(since)
        self._before = {
            name: Moments(mean=rows[0], var=rows[1], count=0) for name, rows in _part(state, "before").items()
        }
        if "evidence" in state:
            mixed, gain, right, adapts = state["evidence"].tolist()
            self.evidence = Evidence(mixed=mixed, gain=gain, right=right, adapts=bool(adapts))
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
