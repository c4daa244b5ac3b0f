"""The newest batches of a stream, and what a network predicts by their moments together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor, nn

from steadynorm.adaptation.evidence import Votes
from steadynorm.adaptation.normalizing import normalizing_by
from steadynorm.statistics import Moments, as_row, measure, pool

__all__ = ["Window"]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is kept of a batch: for each layer its moments as a row, and the votes."""

    rows: Mapping[str, Tensor]
    votes: Votes


class Window:
    """Moments and votes of the newest batches that together have ``images`` images, or of all so far."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._seen: deque[_Seen] = deque()

    @property
    def votes(self) -> Votes:
        """Of all images in the window; there must be some."""
        return reduce(add, (each.votes for each in self._seen))

    def is_full(self) -> bool:
        """Whether there are as many images as are judged."""
        return sum(each.votes.images for each in self._seen) >= self._images

    def predict(self, model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Moments]]:
        """Evaluate the model by the moments of the window with this batch.

        Returns:
            the output, the batch's own moments as rows, and the window's.
        """
        self._drop(len(x))
        rows: dict[str, Tensor] = {}
        moments: dict[str, Moments] = {}

        def choose(name: str, input: Tensor, stored: Moments) -> Moments:
            rows[name] = as_row(measure(input))
            moments[name] = pool(torch.stack([*(each.rows[name] for each in self._seen), rows[name]]))[0]
            return moments[name]

        with normalizing_by(model, choose):
            return cast(Tensor, model(x)), rows, moments

    def add(self, rows: Mapping[str, Tensor], votes: Votes) -> None:
        """Take a batch in that was predicted."""
        self._seen.append(_Seen(rows=rows, votes=votes))

    def clear(self) -> None:
        """Forget all batches."""
        self._seen.clear()

    def _drop(self, coming: int) -> None:
        """Forget the oldest batches that a full window does not need."""
        held = coming + sum(each.votes.images for each in self._seen)
        while self._seen and held - self._seen[0].votes.images >= self._images:
            held -= self._seen.popleft().votes.images

    def state(self) -> dict[str, Tensor]:
        """Give what is remembered, as tensors."""
        found: dict[str, Tensor] = {}
        for number, seen in enumerate(self._seen):
            votes = seen.votes
            sums = torch.tensor([votes.images, votes.entropy, votes.confidence], dtype=torch.float64)
            found |= {f"{number}.votes": sums, f"{number}.probabilities": votes.probabilities}
            found |= {f"{number}.rows.{name}": row for name, row in seen.rows.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Remember what :meth:`state` gave."""
        self.clear()
        while f"{len(self._seen)}.votes" in state:
            number = len(self._seen)
            images, entropy, confidence = state[f"{number}.votes"].tolist()
            self.add(
                {
                    name.removeprefix(f"{number}.rows."): row
                    for name, row in state.items()
                    if name.startswith(f"{number}.rows.")
                },
                Votes(
                    images=int(images),
                    probabilities=state[f"{number}.probabilities"],
                    entropy=entropy,
                    confidence=confidence,
                ),
            )
