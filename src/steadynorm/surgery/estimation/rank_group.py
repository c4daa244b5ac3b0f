"""The ranks that estimate one set of statistics: they exchange values, and an error on one is raised on all."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steadynorm.statistics.ranks import gather_over, ranks_of

__all__ = ["RankGroup"]


class RankGroup:
    """The ranks of a process group, or this process alone, without any communication.

    Args:
        verb: name of the operation, for messages.
        model: its device is used for the collectives.
        process_group: None is the default group.
        alone: whether to ignore other ranks, even if process groups exist.
    """

    def __init__(
        self, verb: str, model: nn.Module, process_group: dist.ProcessGroup | None = None, *, alone: bool = False
    ) -> None:
        self._ranks = ranks = None if alone else ranks_of(process_group, lambda: verb)
        self.size = 1 if ranks is None else ranks.size
        self.rank = 0 if ranks is None else ranks.rank
        self._verb, self._group = verb, process_group
        first = next(chain(model.parameters(), model.buffers()), None)
        self._device = torch.device("cpu") if first is None else first.device

    def gather(self, row: Tensor) -> Tensor:
        """Gather every rank's row, in rank order, on the CPU; the same on every rank. One collective.

        Args:
            row: shape (K,), float64, with the same K on every rank.

        Returns:
            shape (R, K).
        """
        if self.size == 1:
            return row[None]
        assert self._ranks is not None
        return gather_over(self._ranks, row.to(self._device)).view(self.size, -1).cpu()

    def agree(self, decision: bool) -> bool:
        """Return rank 0's decision on every rank."""
        return bool(self.gather(torch.tensor([decision], dtype=torch.float64))[0, 0])

    def all(self, condition: bool) -> bool:
        """Tell, on every rank, whether the condition holds on all ranks."""
        return bool(self.gather(torch.tensor([condition], dtype=torch.float64)).all())

    def check_same(self, names: Iterable[str], what: str) -> None:
        """Raise RuntimeError on every rank if the ranks list different names; their rows would not fit together."""
        text = "\n".join(names)
        own = [text.count("\n") + bool(text), zlib.crc32(text.encode())]
        rows = self.gather(torch.tensor(own, dtype=torch.float64))
        if not bool((rows == rows[0]).all()):
            numbers = ", ".join(f"rank {rank} {int(count)}" for rank, count in enumerate(rows[:, 0]))
            raise RuntimeError(
                f"{self._verb}: all ranks must have the same {what}, got {numbers}, which differ in name, size or "
                "order. Build the same model on every rank and choose the same layers."
            )

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Run a block without communication on every rank; if it raises on one rank, raise on all.

        Raises:
            ValueError: the block raised a ValueError on another rank. On the rank that failed, its own exception.
            RuntimeError: the block raised another exception on another rank.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception as error:  # raised again below: the other ranks wait for this one, so tell them first
            self._tell(error)
            raise
        self._tell(None)

    def _tell(self, error: Exception | None) -> None:
        if self.all(error is None):
            return
        told: list[tuple[bool, str] | None] = [None] * self.size
        own = None if error is None else (isinstance(error, ValueError), f"{error or type(error).__name__}")
        dist.all_gather_object(told, own, group=self._group)
        if error is None:
            rank, (is_value, message) = next((rank, each) for rank, each in enumerate(told) if each is not None)
            raise (ValueError if is_value else RuntimeError)(f"{self._verb}: on rank {rank}: {message}")
