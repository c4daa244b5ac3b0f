"""Detect whether the classes of a stream come in runs, and smooth predictions with the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ClassOrder"]

STAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Hypotheses: probabilities, beyond chance, that the next image has the class of this one; 0 means no order."""
ODDS = 100.0
"""Initial odds for no order against all other hypotheses together."""
FORGETS = 1e-3
"""Share by which each image returns the belief to these odds, so that the order of a stream may change."""
USUAL_FIRST, USUAL_MOST = 3.0, 1000.0
"""Weight in images of equal class shares at the start, and the memory of the usual shares in images."""
DOUBT = 0.02
"""Share of each prediction that is spread over all classes."""

Array = NDArray[np.float64]


class ClassOrder:
    """A hidden Markov model of a stream's classes, which learns how long their runs are.

        P(class of the next image) = ρ·[class of this one] + (1 − ρ)·usual        ρ one of STAYS
        P(image | class) ∝ p / usual                                             p: predicted for the image alone

    ``usual`` is the mean of all predictions so far, including those of the batch. So an error that all images share,
    as under a shift, is no sign of order; only changes over time are. For each ρ the images are filtered
    forwards and the batch backwards too; the ρ are weighted by how well each has predicted.

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
        """Posterior probability of each of STAYS."""
        self.images = 0
        """Images followed so far."""
        self._usual: Array = np.full(classes, USUAL_FIRST / classes)
        self._last: Array = np.full((len(STAYS), classes), 1 / classes)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Self:
        """Restore what :meth:`state` returned."""
        found = cls(len(state["usual"]))
        found.belief, found._usual, found._last = (
            state[name].cpu().numpy().copy() for name in ("belief", "usual", "last")
        )
        found.images = int(state["images"])
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors of float64."""
        found = {"belief": self.belief, "usual": self._usual, "last": self._last}
        tensors = {name: torch.from_numpy(each.copy()) for name, each in found.items()}
        return tensors | {"images": torch.tensor(self.images)}

    @property
    def is_ordered(self) -> bool:
        """Whether classes more likely come in runs than not."""
        return bool(self.belief[0] < 0.5)

    def follow(self, probabilities: Tensor) -> Tensor:
        """Smooth predictions by the order of the classes.

        Args:
            probabilities: prediction for each image alone, shape (N, classes), in stream order.

        Returns:
            smoothed probabilities of the same shape, dtype and device; unchanged ones without an order.
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
        """Filter, and update the belief in each hypothesis; shape (N, hypotheses, classes)."""
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
