"""Events and report of a watch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

__all__ = ["Event", "WatchReport"]

SHOWN = 3
"""Largest number of layers that a line names."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A fault that a watch has found, or its end, and the action taken.

    Args:
        step: number of training forwards before, from the start of the watch.
        check: name of the check; the doctor's name if it has one.
        problem: what is wrong, or that it is over, in one sentence.
        layers: affected layers, worst first; empty for the whole model.
        evidence: measured values, by name.
        action: what was done; empty if nothing was.
        over: whether an earlier fault has ended.
    """

    step: int
    check: str
    problem: str
    layers: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    action: str = ""
    over: bool = False

    @property
    def text(self) -> str:
        """The event as one line of text."""
        named = ", ".join(self.layers[:SHOWN])
        more = len(self.layers) - SHOWN
        where = f" [{named}{f' and {more} more' if more > 0 else ''}]" if self.layers else ""
        numbers = "; ".join(f"{name} {value:.3g}" for name, value in self.evidence.items())
        line = f"step {self.step}: {self.check}{where}: {self.problem}"
        return f"{line}{f' ({numbers})' if numbers else ''}{f' -> {self.action}' if self.action else ''}"


@dataclass(frozen=True, kw_only=True)
class WatchReport:
    """Everything that a watch has found; print it, or use :meth:`to_json`.

    Args:
        steps: number of watched training forwards.
        layers: watched layers.
        unwatched: layer -> why it is not watched.
        events: in order.
    """

    steps: int
    layers: tuple[str, ...]
    unwatched: Mapping[str, str]
    events: Sequence[Event]

    def counts(self) -> dict[str, int]:
        """Return the number of events of each check, not counting ends."""
        return dict(Counter(each.check for each in self.events if not each.over))

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, default=dict)

    def __str__(self) -> str:
        head = f"{_number(self.steps, 'step')}, {_number(len(self.layers), 'layer')} watched"
        lines = [f"{head}: {_number(len(self.events), 'event') if self.events else 'nothing found'}"]
        lines += [f"  not watched: {name}: {why}" for name, why in self.unwatched.items()]
        return "\n".join([*lines, *(f"  {each.text}" for each in self.events)])


def _number(count: int, of: str) -> str:
    return f"{count} {of}{'' if count == 1 else 's'}"
