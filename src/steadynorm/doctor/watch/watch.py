"""Watch a training's batch norms, at a cost low enough to run always."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, get_args
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from steadynorm.doctor.watch.event import Event, WatchReport
from steadynorm.doctor.watch.judge import Judge, Verdict
from steadynorm.doctor.watch.levels import Levels, levels_of
from steadynorm.doctor.watch.listener import EVALUATION, NO_GRADIENT, RECOMPUTATION, Listener
from steadynorm.doctor.watch.recorder import Rows
from steadynorm.doctor.watch.reverts import Reverts
from steadynorm.doctor.watch.wording import BEGUN, OVER
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.kinds import Norm, is_batch_norm, kind_of, why_unknown
from steadynorm.surgery.named_modules import NamedModule, named_modules_of

__all__ = ["Policy", "Watch"]

Policy = Literal["warn", "revert"]
"""Whether a watch only reports, or also acts."""
FEWEST = 8
"""Smallest number of training forwards to judge, except at the end of a watch."""
_log = logging.getLogger("steadynorm.watch")
_ACTING: WeakKeyDictionary[nn.Module, ref[Watch]] = WeakKeyDictionary()
"""Layer -> the active watch that may act on it; its hooks keep it alive as long as the model."""


class Watch:
    r"""Watch a model's batch norms during training: report harm, and under ``policy="revert"`` undo it.

    $$
    \mathrm{batch} = \mathrm{old} + \frac{\mathrm{new} - \mathrm{old}}{\mathrm{momentum}}
    $$

    The moments of each batch are computed from the running statistics before and after the forward (the average over
    the calls of a layer), and its classes from the gradient of the logits. This needs no pass over the data, and reads
    values from a GPU only every ``every`` training forwards and before an evaluation. Then the forwards since the last
    judgement are judged:

    | check | what is wrong | under ``"revert"`` |
    |---|---|---|
    | nonfinite-statistics | a batch made running statistics NaN or infinite | restored at once |
    | outlier-statistics | single batches are far from all others | their effect is removed |
    | single-class-batch | batches have far fewer classes than usual | removed; running statistics pause |
    | statistics-lag | running statistics lag behind the batches | set to recent batches; better momentum |
    | train-eval-gap | batches are much further from running statistics than usual | layers are bound |
    | collapsed-variance | more than half of a layer's channels lose their variance | layers are bound |
    | statistics-moved-in-eval | updated in evaluation or without gradient | nothing |
    | double-update | batches count twice: second forward, or checkpointing | checkpointing's are undone |

    A bound layer normalizes its training batches by its running statistics within batch renorm's bounds, and does not
    update them. Lasting faults begin after two judgements (one if it is certain) and end after two without the fault.
    Evaluation forwards are never changed, and :meth:`stop` removes every measure. With torch.distributed and
    ``"revert"``, ranks judge together, so every rank must run the same number of training forwards.

    Args:
        model: the module whose forward, or whose direct children's forwards, the training calls; of a compiled model,
            the compiled one. If a function around the model is compiled, hooks break its graph (no ``fullgraph=True``).
        policy: ``"warn"`` only reports; ``"revert"`` also acts.
        every: training forwards between two judgements, at least 16.
        on_event: called with every event, inside the forward that triggers a judgement. An exception propagates from
            that forward; the watch can continue.

    Raises:
        ValueError: the model has nothing to watch; an unknown policy; ``every`` below 16.

    >>> import steadynorm
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> with steadynorm.Watch(model) as watch:
    ...     _ = model(torch.randn(8, 3))
    >>> watch.report().steps
    1
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy = "warn",
        *,
        every: int = 32,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f"Watch: policy must be one of {get_args(Policy)}, got {policy!r}.")
        if every < 2 * FEWEST:
            raise ValueError(f"Watch: every must be at least {2 * FEWEST} training forwards, got {every}.")
        layers, self._unwatched = _chosen(model)
        if not layers:
            raise ValueError(
                f"Watch: the model must have batch norms with running statistics, {_why(self._unwatched)}."
            )
        self.policy, self.every, self.on_event = policy, every, on_event
        self.events: list[Event] = []
        """Events so far, in order."""
        self.step = 0
        """Training forwards up to the last judgement."""
        self._reverts = policy == "revert"
        self._listener = Listener(
            model,
            layers,
            every=every,
            on_full=self._judge,
            on_evaluation=self._before_evaluation,
            on_moved=self._start_stretch,
            on_lost=self._give_up,
            guarded=self._reverts,
        )
        self._layers = self._listener.layers
        self._was_called = False
        momenta: list[Any] = [each.module.momentum for each in self._layers]
        self._judge_of, self._acts = Judge(momenta), Reverts(self._listener)
        self._moved: set[str] = set()
        self._model = model

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, or continue after :meth:`stop` or :meth:`load_state_dict`."""
        self._ranks = RankGroup("Watch", self._model, alone=not self._reverts)
        if self._reverts:
            self._take_over()
        self._listener.start()

    def stop(self) -> None:
        """Judge the remaining forwards, remove all hooks, and restore every layer's behaviour."""
        try:
            if self._listener.is_on and self._ranks.size == 1:
                self._judge()
        finally:
            self._end()
        if not self._was_called:
            _log.warning(
                "Watch: the model ran no training forward. Give Watch the module that the training calls, and call it "
                "within the watch."
            )

    def report(self) -> WatchReport:
        """Return the report so far; print it, or use its JSON."""
        return WatchReport(
            steps=self.step + len(self._listener.momenta),
            layers=tuple(each.name for each in self._layers),
            unwatched=self._unwatched,
            events=tuple(self.events),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming with the same decisions: tensors and plain values only."""
        return {
            "step": self.step,
            "listener": self._listener.state_dict(),
            "memory": {name: each.clone() for name, each in self._judge_of.memory.items()},
            "acts": self._acts.state_dict(),
            "moved": sorted(self._moved),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state of a watch over the same layers; load the model's own state first.

        Raises:
            ValueError: the state is of a watch over other layers, or with another ``every``.
        """
        self._listener.load_state_dict(state["listener"])
        self.step = state["step"]
        self._judge_of.memory = {name: each.clone() for name, each in state["memory"].items()}
        self._moved = set(state["moved"])
        self._acts.load_state_dict(state["acts"])

    def _take_over(self) -> None:
        """Stop another watch that may act on the same layers, as when a notebook cell runs again."""
        modules = [each.module for each in self._layers]
        others = {_ACTING[each]() for each in modules if each in _ACTING} - {self}
        for other in others:
            if other is None:
                continue
            _log.warning("Watch: another watch over the same layers has been stopped, so that one alone acts on them.")
            other.stop()
        _ACTING.update(dict.fromkeys(modules, ref(self)))

    # Judging

    def _before_evaluation(self) -> None:
        """Judge before running statistics are used, unless other ranks must take part."""
        if len(self._listener.momenta) >= FEWEST and self._ranks.size == 1:
            self._judge()

    def _judge(self) -> None:
        forwards = len(self._listener.momenta)
        self._was_called |= forwards > 0
        events: list[Event] = []
        if forwards:
            levels, classes = self._measured(forwards)
            verdicts = self._judge_of.judge(levels, classes)
            if self._reverts:
                self._acts.drop([each.rows for each in verdicts if each.rows is not None])
            events += [self._taken(verdict) for verdict in verdicts]
        events += self._what_moved()
        self._start_stretch()
        self._tell(events)

    def _start_stretch(self) -> None:
        self.step += len(self._listener.momenta)
        self._listener.clear()
        self._name_replaced()

    def _name_replaced(self) -> None:
        """Warn once of layers that were replaced in the model: their replacements are not watched."""
        present = set(self._model.modules())
        gone = [each.name for each in self._layers if each.module not in present and each.name not in self._unwatched]
        if gone:
            self._unwatched |= dict.fromkeys(gone, "another module has replaced it")
            _log.warning("Watch: layers have been replaced (%s); start another watch.", ", ".join(gone))

    def _give_up(self, lost: str) -> None:
        _log.warning("Watch: %s; the watch has stopped. Start another one.", lost)
        self._start_stretch()
        self._was_called = True
        self._end()

    def _end(self) -> None:
        self._listener.stop()
        self._acts.lift()
        for each in self._layers:
            if _ACTING.get(each.module) == ref(self):
                del _ACTING[each.module]

    def _measured(self, forwards: int) -> tuple[Levels, Tensor | None]:
        """Measure the stretch, over all ranks if they decide together."""
        slices, at = [], 0
        for rows in self._listener.rows:
            slices.append(slice(at, at + len(rows.layout.layers)))
            at = slices[-1].stop
        parts = [
            levels_of(rows, forwards, [row[part] for row in self._listener.momenta])
            for rows, part in zip(self._listener.rows, slices, strict=True)
        ]
        levels, counts = Levels.join([each.cpu() for each in parts]), self._listener.classes_of(forwards)
        return levels.over(self._ranks), _sum_over(self._ranks, counts)

    def _what_moved(self) -> list[Event]:
        """Report once the running statistics that moved in forwards outside training."""
        events = []
        names = [
            named.name
            for rows in self._listener.rows
            for named, moved in zip(rows.layout.layers, _moved(rows), strict=True)
            if moved
        ]
        for purpose in self._listener.others if names else ():
            check = "double-update" if purpose == RECOMPUTATION else "statistics-moved-in-eval"
            if purpose in self._moved or (purpose == EVALUATION and NO_GRADIENT in self._listener.others):
                continue
            self._moved.add(purpose)
            events.append(
                Event(
                    step=self.step + len(self._listener.momenta),
                    check=check,
                    layers=tuple(names),
                    problem=BEGUN[f"{check}, {purpose}"],
                    action="put back" if purpose == RECOMPUTATION and self._reverts else "",
                )
            )
        return events

    # Acting

    def _taken(self, verdict: Verdict) -> Event:
        """Act on a verdict."""
        can_hold = not self._judge_of.is_new
        at = 0 if verdict.rows is None else int(verdict.rows.int().argmax())
        return Event(
            step=self.step + at,
            check=verdict.check,
            layers=tuple(self._layers[each].name for each in verdict.layers),
            problem=(OVER if verdict.over else BEGUN)[verdict.check],
            evidence=verdict.evidence,
            action=self._acts.act(verdict, self._ranks, can_hold=can_hold) if self._reverts else "",
            over=verdict.over,
        )

    def _tell(self, events: list[Event]) -> None:
        """Store and log all events before calling user code, which may raise."""
        self.events += events
        for event in events:
            _log.log(logging.INFO if event.over else logging.WARNING, "%s", event.text)
        for event in events:
            if self.on_event is not None:
                self.on_event(event)


def _chosen(model: nn.Module) -> tuple[list[NamedModule], dict[str, str]]:
    """Return the layers that can be watched, and why others cannot."""
    chosen, left = [], {}
    for named in named_modules_of(model):
        why = _why_not(named.module)
        if why is None:
            chosen.append(named)
        elif why:
            left[named.name] = why
    return chosen, left


def _why_not(module: Norm) -> str | None:
    """Say why a layer cannot be watched; empty if it is not a batch norm, None if it can be watched."""
    unknown = why_unknown(module)
    if unknown is not None:
        return unknown
    if not is_batch_norm(module):
        return ""
    if kind_of(module)[0].name == "frozen_batch_norm":
        return "it is frozen, and never moves its running statistics"
    if not isinstance(module.running_mean, Tensor):
        return "it has no running statistics"
    if getattr(module, "momentum", None) is None:
        return "it has no momentum by which running statistics follow each batch"
    if getattr(module, "update_every", 1) > 1 or getattr(module, "running", "exponential") != "exponential":
        return "its running statistics do not follow each batch by a momentum"
    return None


def _why(unwatched: Mapping[str, str]) -> str:
    named = "; ".join(f"{name}: {why}" for name, why in [*unwatched.items()][:3])
    return f"but none of them can be watched ({named})" if named else "but it has none"


def _moved(rows: Rows) -> list[bool]:
    return (rows.layout.by_layer(rows.moved.any(0).double()) > 0).tolist()


def _sum_over(ranks: RankGroup, counts: Tensor | None) -> Tensor | None:
    if counts is None or ranks.size == 1:
        return counts
    return ranks.gather(counts.flatten().double()).sum(0).view(counts.shape)
