"""The largest learning rate that trains, by bisection over short runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from steadynorm.reporting.chance import Chance, chance_in_training
from steadynorm.reporting.records import Cell, Record

__all__ = ["SEARCH_STEPS", "Bracket", "bracket", "chance_in_search", "next_rate", "trains", "tried_rates"]

START = 0.1
STRIDE = 4.0
"""Factor between the rates tried until one trains and one does not."""
CLOSE = 1.5
"""The search ends once a rate that does not train is within this factor of one that does."""
SMALLEST, LARGEST = 1e-6, 1e4
SEARCH_STEPS = 50
"""Steps in each epoch of a short run."""


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Interval that holds the largest rate that trains."""

    trains: float | None
    """Largest rate that trained, below all rates that did not; None if there is none."""
    fails: float | None
    """Smallest rate that did not train; None if there is none."""

    @property
    def is_close(self) -> bool:
        """Whether the search is over."""
        if self.trains is None or self.fails is None:
            return (self.fails or math.inf) <= SMALLEST or (self.trains or 0) >= LARGEST
        return self.fails <= CLOSE * self.trains


def trains(run: Cell, *, guessing: float, chance: Chance) -> bool:
    """Whether a run was surely better than guessing on its training images in the last epoch.

    The mean loss must be below ``guessing``, the loss of a network that knows only the class frequencies, and the
    accuracy above that of guessing. Neither holds if the loss is not finite.
    """
    if run.status != "finished":
        return False
    return run.last("train_loss") < guessing and chance.is_beaten(run.last("train_accuracy"))


def chance_in_search(record: Record, batch_size: int) -> Chance:
    """Return loss and accuracy of guessing on the training images of an epoch of a short run."""
    images = min(int(record.resolved["train_images"]), SEARCH_STEPS * batch_size)
    return replace(chance_in_training(record), images=images)


def bracket(tried: Mapping[float, bool]) -> Bracket:
    """Return the interval that the rates tried so far imply; all rates above a failing one count as failing."""
    fails = min((rate for rate, well in tried.items() if not well), default=None)
    good = [rate for rate, well in tried.items() if well and (fails is None or rate < fails)]
    return Bracket(trains=max(good, default=None), fails=fails)


def next_rate(tried: Mapping[float, bool]) -> float | None:
    """Choose the rate to try next: by factors of 4 from 0.1 until it is bracketed, then the geometric middle.

    Returns:
        a rate of three significant digits, or None if the bracket is within a factor of 1.5.
    """
    if not tried:
        return START
    now = bracket(tried)
    if now.is_close:
        return None
    if now.fails is None:
        return _round(max(tried) * STRIDE)
    if now.trains is None:
        return _round(now.fails / STRIDE)
    return _round(math.sqrt(now.trains * now.fails))


def tried_rates(runs: Iterable[Cell], *, guessing: float, chance: Chance) -> dict[float, bool]:
    """Collect rate -> whether it trains, from the finished runs."""
    return {run.factors["lr"]: trains(run, guessing=guessing, chance=chance) for run in runs if run.has_ended}


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
