"""Statistics that follow a shift, and not the classes that happen to come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from steadynorm.adaptation.class_moments import ClassMoments, shifted_stored
from steadynorm.adaptation.normalizing import normalizing_by
from steadynorm.statistics import Moments, measure

__all__ = ["Tracker"]

CHUNK = 48
"""Least number of images whose moments are measured together."""
LEAST = 0.2
"""Least weight of the newest chunk."""


class Tracker:
    """Running statistics, corrected for the stream's shift chunk by chunk.

        new = (1 − w)·old + w·shifted stored        w = max(LEAST, 1/(k + 2)) for chunk k = 0, 1, ..; old: the stored

    In each chunk a layer's moments are compared with those of clean images of the same classes, see
    :func:`steadynorm.adaptation.class_moments.shifted_stored`; layers below it normalize by their new moments already.

    Source: memories of test moments that are balanced over predicted classes, as NOTE (Gong et al. 2022,
    arXiv 2208.05117) and RoTTA (Yuan, Xie & Li 2023, arXiv 2303.13899) keep, begin after all classes have been seen;
    this begins with the first chunk, as it knows the classes' clean moments.
    """

    def __init__(self, classes: ClassMoments) -> None:
        self._classes = classes
        self.moments: dict[str, Moments] = {}
        """Layer -> moments by which it normalizes; empty before the first chunk."""
        self.chunks = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Evaluate the model with the moments learned so far."""
        with normalizing_by(model, lambda name, input, stored: self.moments.get(name, stored)):
            return cast(Tensor, model(x))

    def learn(self, model: nn.Module, x: Tensor, probabilities: Tensor) -> None:
        """Follow images (N, C, ...) with these class probabilities, shape (N, classes)."""
        self._waiting.append((x, probabilities))
        if sum(len(each) for each, _ in self._waiting) >= CHUNK:
            chunk, classes = (torch.cat(each) for each in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self._follow(model, chunk, classes.mean(0))

    def _follow(self, model: nn.Module, x: Tensor, shares: Tensor) -> None:
        weight = max(LEAST, 1 / (self.chunks + 2))
        found: dict[str, Moments] = {}

        def choose(name: str, input: Tensor, stored: Moments) -> Moments:
            if name not in self._classes.of:
                return stored
            old = self.moments.get(name, stored)
            new = shifted_stored(stored, measure(input), self._classes.mixture(name, shares))
            found[name] = Moments(mean=old.mean.lerp(new.mean, weight), var=old.var.lerp(new.var, weight), count=0)
            return found[name]

        with normalizing_by(model, choose):
            model(x)
        self.moments, self.chunks = found, self.chunks + 1

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        found = {"chunks": torch.tensor(self.chunks)}
        for name, each in self.moments.items():
            found[f"moments.{name}"] = torch.stack((each.mean, each.var))
        for number, (x, probabilities) in enumerate(self._waiting):
            found |= {f"waiting.{number}.x": x, f"waiting.{number}.probabilities": probabilities}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        self.chunks = int(state["chunks"])
        self.moments = {
            name.removeprefix("moments."): Moments(mean=rows[0], var=rows[1], count=0)
            for name, rows in state.items()
            if name.startswith("moments.")
        }
        self._waiting.clear()
        while f"waiting.{len(self._waiting)}.x" in state:
            place = f"waiting.{len(self._waiting)}"
            self._waiting.append((state[f"{place}.x"], state[f"{place}.probabilities"]))
