"""What a watch has seen and done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

__all__ = ["Event", "WatchReport"]

SHOWN = 3
"""Layers that a line names."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that was seen in a training, or its end, and what was done about it.

    Args:
        step: training forwards before the one at which it was seen, from the start of the watch.
        check: what it is, by the doctor's names where it has one.
        problem: what is wrong, or that it is over, in one sentence.
        layers: where, the worst first; empty for the model as a whole.
        evidence: what was measured, by name.
        action: what was done; empty where nothing was.
        over: whether it is the end of what an earlier event began.
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
        """One line: step, check, layers, problem, evidence, action."""
        named = ", ".join(self.layers[:SHOWN])
        more = len(self.layers) - SHOWN
        where = f" [{named}{f' and {more} more' if more > 0 else ''}]" if self.layers else ""
        numbers = "; ".join(f"{name} {value:.3g}" for name, value in self.evidence.items())
        line = f"step {self.step}: {self.check}{where}: {self.problem}"
        return f"{line}{f' ({numbers})' if numbers else ''}{f' -> {self.action}' if self.action else ''}"


@dataclass(frozen=True, kw_only=True)
class WatchReport:
    """All of a watch's events.

    Args:
        steps: training forwards that were watched.
        layers: that were watched.
        unwatched: layer -> why it was not.
        events: in the order in which they came.
    """

    steps: int
    layers: tuple[str, ...]
    unwatched: Mapping[str, str]
    events: Sequence[Event]

    def counts(self) -> dict[str, int]:
        """Give the number of events of each check, ends left out."""
        return dict(Counter(each.check for each in self.events if not each.over))

    def to_json(self) -> str:
        """Give the report as JSON, which :func:`json.loads` reads back."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, default=dict)

    def __str__(self) -> str:
        head = f"{_number(self.steps, 'step')}, {_number(len(self.layers), 'layer')} watched"
        lines = [f"{head}: {_number(len(self.events), 'event') if self.events else 'nothing found'}"]
        lines += [f"  not watched: {name}: {why}" for name, why in self.unwatched.items()]
        return "\n".join([*lines, *(f"  {each.text}" for each in self.events)])


def _number(count: int, of: str) -> str:
    return f"{count} {of}{'' if count == 1 else 's'}"
