"""The newest batches of a stream, and predictions by their common moments."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor, nn

from steadynorm.adaptation.evidence import Seen, Votes, read_row
from steadynorm.adaptation.normalizing import normalizing_by
from steadynorm.statistics import Moments

__all__ = ["Window"]


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Record of a batch: the row of each layer, and the votes."""

    rows: Mapping[str, Tensor]
    votes: Votes


class Window:
    """Moments and votes of the newest batches that together have ``images`` images, or of all so far."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._batches: deque[_Batch] = deque()

    @property
    def votes(self) -> Votes:
        """Votes of all images in the window, which must not be empty."""
        return reduce(add, (each.votes for each in self._batches))

    @property
    def newest(self) -> Votes | None:
        """Votes of the newest batch, or None."""
        return self._batches[-1].votes if self._batches else None

    def is_full(self) -> bool:
        """Whether the window holds as many images as a decision needs."""
        return sum(each.votes.images for each in self._batches) >= self._images

    def predict(self, model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Seen]]:
        """Evaluate the model with the moments of the window that this batch ends.

        Returns:
            the output, each layer's row for the batch, and each layer's statistics for the window.
        """
        self._drop(len(x))
        rows: dict[str, Tensor] = {}
        seen: dict[str, Seen] = {}

        def choose(name: str, input: Tensor, stored: Moments) -> Moments:
            rows[name] = read_row(input)
            seen[name] = Seen.of(torch.stack([*(each.rows[name] for each in self._batches), rows[name]]))
            return seen[name].moments

        with normalizing_by(model, choose):
            return cast(Tensor, model(x)), rows, seen

    def add(self, rows: Mapping[str, Tensor], votes: Votes) -> None:
        """Add a predicted batch."""
        self._batches.append(_Batch(rows=rows, votes=votes))

    def clear(self) -> None:
        """Forget all batches."""
        self._batches.clear()

    def _drop(self, coming: int) -> None:
        """Forget the oldest batches that a full window does not need."""
        held = coming + sum(each.votes.images for each in self._batches)
        while self._batches and held - self._batches[0].votes.images >= self._images:
            held -= self._batches.popleft().votes.images

    def state(self) -> dict[str, Tensor]:
        """Return the window as tensors."""
        found: dict[str, Tensor] = {}
        for number, batch in enumerate(self._batches):
            votes = batch.votes
            found |= {f"{number}.images": torch.tensor(votes.images), f"{number}.both": votes.both}
            found |= {f"{number}.stored": votes.stored, f"{number}.batch": votes.batch}
            found |= {f"{number}.rows.{name}": row for name, row in batch.rows.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        self.clear()
        while f"{len(self._batches)}.images" in state:
            number = len(self._batches)
            stored, batch, both = (state[f"{number}.{name}"] for name in ("stored", "batch", "both"))
            head = f"{number}.rows."
            self.add(
                {name.removeprefix(head): row for name, row in state.items() if name.startswith(head)},
                Votes(images=int(state[f"{number}.images"]), stored=stored, batch=batch, both=both),
            )
