"""Whether the classes of a stream come in runs, and what the run tells about each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ClassOrder"]

STAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Probabilities that the next image is of the class of this one, beyond chance: the hypotheses. The first is a stream
without order."""
ODDS = 100.0
"""At the beginning, for no order and against all others together."""
FORGETS = 1e-3
"""Share of belief that each image gives back to those odds, so that a stream may change its order."""
USUAL_FIRST, USUAL_MOST = 3.0, 1000.0
"""Images that count for equal shares of the classes before the first, and images that the usual shares remember."""
DOUBT = 0.02
"""Share of each prediction that is spread over all classes."""

Array = NDArray[np.float64]


class ClassOrder:
    """A hidden Markov model of a stream's classes, of which it learns how sticky they are.

        P(class of the next image) = ρ·[class of this one] + (1 − ρ)·usual        ρ one of STAYS
        P(image | class) ∝ p / usual                                             p: predicted for the image alone

    ``usual`` is the mean of all predictions so far, those of the batch among them. So a network that is wrong in the
    same manner for every image, as under a shift, tells nothing about order; only changes over time do. For each ρ the
    images are filtered forwards, the batch backwards too, and the ρ are weighted by how well each has predicted.

    Source: Rabiner 1989, "A tutorial on hidden Markov models", for the filter; p / usual: Saerens, Latinne &
    Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities"; FORGETS: Herbster &
    Warmuth 1998, "Tracking the best expert".

    Args:
        classes: at least 2.
    """

    def __init__(self, classes: int) -> None:
        odds = np.array([ODDS, *[1 / (len(STAYS) - 1)] * (len(STAYS) - 1)])
        self._odds: Array = odds / odds.sum()
        self.belief: Array = self._odds.copy()
        """Probability of each of STAYS."""
        self.images = 0
        """Followed so far."""
        self._usual: Array = np.full(classes, USUAL_FIRST / classes)
        self._last: Array = np.full((len(STAYS), classes), 1 / classes)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Self:
        """Go on where :meth:`state` was taken."""
        found = cls(len(state["usual"]))
        found.belief, found._usual, found._last = (
            state[name].cpu().numpy().copy() for name in ("belief", "usual", "last")
        )
        found.images = int(state["images"])
        return found

    def state(self) -> dict[str, Tensor]:
        """Return all that is remembered, as tensors of float64."""
        found = {"belief": self.belief, "usual": self._usual, "last": self._last}
        tensors = {name: torch.from_numpy(each.copy()) for name, each in found.items()}
        return tensors | {"images": torch.tensor(self.images)}

    @property
    def is_ordered(self) -> bool:
        """Whether classes more likely come in runs than not."""
        return bool(self.belief[0] < 0.5)

    def follow(self, probabilities: Tensor) -> Tensor:
        """Return what the order makes of predictions.

        Args:
            probabilities: of each image alone, shape (N, classes), in the order in which the images came.

        Returns:
            probabilities of the same shape, dtype and device; those given, where there is no order.
        """
        given = probabilities.double().cpu().numpy()
        self.images += len(given)
        self._usual += given.sum(0)
        self._usual *= min(1.0, USUAL_MOST / self._usual.sum())
        usual = self._usual / self._usual.sum()
        told = (given + DOUBT / len(usual)) / (usual + DOUBT / len(usual))
        filtered = self._forwards(told, usual)
        smoothed = self._backwards(filtered, told, usual)
        return torch.from_numpy(np.einsum("r,nrc->nc", self.belief, smoothed)).to(probabilities)

    def _forwards(self, told: Array, usual: Array) -> Array:
        """Filter, and learn from how well each hypothesis predicts; shape (N, hypotheses, classes)."""
        stays = np.array(STAYS)[:, None]
        filtered = np.empty((len(told), *self._last.shape))
        for number, each in enumerate(told / (told @ usual)[:, None]):
            joint = (stays * self._last + (1 - stays) * usual) * each
            likelihood = joint.sum(1)
            filtered[number] = self._last = joint / likelihood[:, None]
            belief = self.belief * likelihood
            self.belief = (1 - FORGETS) * belief / belief.sum() + FORGETS * self._odds
        return filtered

    def _backwards(self, filtered: Array, told: Array, usual: Array) -> Array:
        stays = np.array(STAYS)[:, None]
        ahead = np.ones_like(self._last)
        smoothed = np.empty_like(filtered)
        for number in reversed(range(len(told))):
            joint = filtered[number] * ahead
            smoothed[number] = joint / joint.sum(1, keepdims=True)
            after = told[number] * ahead
            ahead = stays * after + (1 - stays) * (after @ usual)[:, None]
            ahead /= ahead.max(1, keepdims=True)
        return smoothed
