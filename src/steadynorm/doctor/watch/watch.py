"""A watch over the batch norms of a training, light enough to run always."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from steadynorm.doctor.watch.actions import QUICKER, Hold, foretold, layout_of, without
from steadynorm.doctor.watch.event import Event, WatchReport
from steadynorm.doctor.watch.judge import Judge, Verdict
from steadynorm.doctor.watch.levels import Levels, levels_of
from steadynorm.doctor.watch.listener import EVALUATION, NO_GRADIENT, RECOMPUTATION, Listener
from steadynorm.doctor.watch.recorder import Rows
from steadynorm.doctor.watch.wording import BEGUN, OVER
from steadynorm.layers import MaskedBatchNorm1d
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.kinds import Norm, eps_of, is_batch_norm, why_unknown
from steadynorm.surgery.named_modules import NamedModule, named_modules_of

__all__ = ["Policy", "Watch"]

Policy = Literal["warn", "revert"]
FEWEST = 8
"""Training forwards that are judged, unless a watch ends."""
BETTER = 0.8
"""Share of the error of the layer's momentum that another must not exceed."""
_log = logging.getLogger("steadynorm.watch")


class Watch:
    """Watch a model's batch norms while it trains; say what harms, and under ``policy="revert"`` undo it.

        batch = old + (new − old)/momentum

    The moments of each batch are read off the running estimates before and after the model's forward, and the classes
    of the batch off the gradient of its logits: no pass over the data, and no look at a device's values more often
    than every ``every`` training forwards. Then the stretch is judged:

    ==========================  ==========================================================  =========================
    check                       what                                                        under revert
    ==========================  ==========================================================  =========================
    nonfinite-statistics        a batch made running estimates NaN or infinite              they go back at once
    outlier-statistics          single batches far from all others                          they are taken out again
    single-class-batch          batches of far fewer classes than usual                     taken out; while it lasts,
                                                                                            layers are held
    statistics-lag              running estimates stay behind the batches                   a momentum that foretells
                                                                                            the batches best
    train-eval-gap              batches lie much further from the estimates than usual      layers are held
    collapsed-variance          more than half of a layer's channels lose their variance    layers are held
    statistics-moved-in-eval    estimates move in evaluation or without gradient            nothing
    double-update               batches count twice: by a second forward, or checkpointing  the latter is put back
    ==========================  ==========================================================  =========================

    A layer that is held normalizes its training batches by its running estimates, within renorm's bounds, and these
    stand still. What lasts begins after two stretches, or one where that is sure, and is over after two without it.
    In evaluation the layers do what they always do. With torch.distributed and ``"revert"`` all ranks judge together,
    once every stretch, so every rank must run the same number of training forwards.

    Args:
        model: the module whose forward the training calls; or its direct children's.
        policy: ``"warn"`` changes nothing.
        every: training forwards in a stretch, at least 16.
        on_event: called with every event as it comes.

    Raises:
        ValueError: nothing in the model can be watched; another policy; fewer forwards.
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
            raise ValueError(f"Watch: the model must have batch norms with running estimates, {_why(self._unwatched)}.")
        self.policy, self.every, self.on_event = policy, every, on_event
        self.events: list[Event] = []
        """All so far, in the order in which they came."""
        self.step = 0
        """Training forwards before the present stretch."""
        self._reverts = policy == "revert"
        self._listener = Listener(
            model,
            layers,
            every=every,
            on_full=self._judge,
            on_evaluation=self._before_evaluation,
            guarded=self._reverts,
        )
        self._layers = self._listener.layers
        self._was_called = False
        self._eps = [eps_of(each.module) for each in self._layers]
        self._judge_of = Judge([self._module(layer).momentum for layer in range(len(self._layers))])
        self._held: dict[int, tuple[Hold, set[str]]] = {}
        self._momenta: dict[int, tuple[float, float]] = {}
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
        """Begin, or go on after :meth:`stop` or :meth:`load_state_dict`."""
        self._ranks = RankGroup("Watch", self._model, alone=not self._reverts)
        self._listener.start()

    def stop(self) -> None:
        """Judge what is left of a stretch, take all hooks away, and let every layer do what it did before."""
        if self._listener.is_on and self._ranks.size == 1:
            self._judge()
        self._listener.stop()
        for layer in [*self._held]:
            self._release(layer, None)
        for layer in [*self._momenta]:
            self._slow(layer)
        if not self._was_called:
            _log.warning(
                "Watch: the model ran no training forward. Give Watch the module that the training calls, and call it "
                "within the watch."
            )

    def report(self) -> WatchReport:
        """Give what was seen so far; print it, or take its JSON."""
        return WatchReport(
            steps=self.step + len(self._listener.momenta),
            layers=tuple(each.name for each in self._layers),
            unwatched=self._unwatched,
            events=tuple(self.events),
        )

    def state_dict(self) -> dict[str, Any]:
        """Give what it takes to go on after a checkpoint with the same decisions: tensors and plain values alone."""
        return {
            "step": self.step,
            "listener": self._listener.state_dict(),
            "memory": {name: each.clone() for name, each in self._judge_of.memory.items()},
            "held": {
                self._layers[layer].name: {"beside": [*hold.beside], "why": sorted(why)}
                for layer, (hold, why) in self._held.items()
            },
            "momenta": {self._layers[layer].name: list(pair) for layer, pair in self._momenta.items()},
            "moved": sorted(self._moved),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a watch over the same layers was; load the model's own state before.

        Raises:
            ValueError: the state is of a watch over other layers, or of stretches of another length.
        """
        layers = {each.name: number for number, each in enumerate(self._layers)}
        self._listener.load_state_dict(state["listener"])
        self.step = state["step"]
        self._judge_of.memory = {name: each.clone() for name, each in state["memory"].items()}
        self._moved = set(state["moved"])
        for name, held in state["held"].items():
            for why in held["why"]:
                self._hold(layers[name], why, tuple(each.clone() for each in held["beside"]))
        for name, (before, now) in state["momenta"].items():
            self._module(layers[name]).momentum = now
            self._momenta[layers[name]] = before, now

    # Judging

    def _before_evaluation(self) -> None:
        """Judge before running estimates are used, where no other rank has to take part."""
        if len(self._listener.momenta) >= FEWEST and self._ranks.size == 1:
            self._judge()

    def _judge(self) -> None:
        forwards = len(self._listener.momenta)
        self._was_called |= forwards > 0
        if forwards:
            levels, classes = self._measured(forwards)
            verdicts = self._judge_of.judge(levels, classes)
            self._drop([each.rows for each in verdicts if each.rows is not None])
            for verdict in verdicts:
                self._take(verdict)
        self._say_what_moved()
        self.step += forwards
        self._listener.clear()

    def _measured(self, forwards: int) -> tuple[Levels, Tensor | None]:
        """Measure the stretch, on all ranks together where they decide together."""
        slices, at = [], 0
        for rows in self._listener.rows:
            slices.append(slice(at, at + len(rows.layout.layers)))
            at = slices[-1].stop
        parts = [
            levels_of(rows, forwards, [row[part] for row in self._listener.momenta])
            for rows, part in zip(self._listener.rows, slices, strict=True)
        ]
        levels, counts = Levels.join(parts).cpu(), self._listener.classes_of(forwards)
        return levels.over(self._ranks), _sum_over(self._ranks, counts)

    def _say_what_moved(self) -> None:
        """Tell, once, of running estimates that moved in forwards that were for something else."""
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
            self._tell(
                Event(
                    step=self.step + len(self._listener.momenta),
                    check=check,
                    layers=tuple(names),
                    problem=BEGUN[f"{check}, {purpose}"],
                    action="put back" if purpose == RECOMPUTATION and self._reverts else "",
                )
            )

    # Acting

    def _take(self, verdict: Verdict) -> None:
        """Act on a verdict, and tell of it."""
        layers = verdict.layers
        at = 0 if verdict.rows is None else int(verdict.rows.int().argmax())
        self._tell(
            Event(
                step=self.step + at,
                check=verdict.check,
                layers=tuple(self._layers[each].name for each in layers),
                problem=(OVER if verdict.over else BEGUN)[verdict.check],
                evidence=verdict.evidence,
                action=self._act(verdict) if self._reverts else "",
                over=verdict.over,
            )
        )

    def _act(self, verdict: Verdict) -> str:
        layers = verdict.layers or tuple(range(len(self._layers)))
        match verdict.check:
            case "nonfinite-statistics":
                return "" if verdict.over else "put back"
            case "outlier-statistics":
                return "taken out"
            case "statistics-lag":
                return self._slow_all(layers) if verdict.over else self._quicken_all(layers)
            case "double-update":
                return ""
        if verdict.over:
            for layer in layers:
                self._release(layer, verdict.check)
            return "let go"
        taken = "taken out" if verdict.rows is not None else ""
        if not verdict.lasting or self._judge_of.is_new:
            return taken
        held = [layer for layer in layers if self._hold(layer, verdict.check)]
        return " and ".join(part for part in (taken, "held" if held else "") if part)

    def _drop(self, bad: list[Tensor]) -> None:
        """Take batches out of the running estimates of all layers."""
        if not (self._reverts and bad):
            return
        rows_of_any = torch.stack(bad).any(0)
        at = 0
        for rows in self._listener.rows:
            part = slice(at, at + len(rows.layout.layers))
            at = part.stop
            rows.layout.write(without(rows, [row[part] for row in self._listener.momenta], rows_of_any))

    def _hold(self, layer: int, why: str, beside: tuple[Tensor, ...] | None = None) -> bool:
        module = self._module(layer)
        if isinstance(module, MaskedBatchNorm1d):
            return False
        if layer not in self._held:
            layout = layout_of(self._listener.layouts, module)
            self._held[layer] = Hold(layout, module, beside), set()  # type: ignore[arg-type]
        self._held[layer][1].add(why)
        return True

    def _release(self, layer: int, why: str | None) -> None:
        if layer not in self._held:
            return
        hold, reasons = self._held[layer]
        reasons.discard(why or "")
        if why is None or not reasons:
            hold.release()
            del self._held[layer]

    def _quicken_all(self, layers: tuple[int, ...]) -> str:
        chosen = {layer: self._quicken(layer) for layer in layers if layer not in self._momenta}
        found = {layer: each for layer, each in chosen.items() if each is not None}
        for layer, momentum in found.items():
            module = self._module(layer)
            self._momenta[layer] = module.momentum, momentum
            module.momentum = momentum
        if not found:
            return "no momentum foretells the batches better"
        least, most = min(found.values()), max(found.values())
        return f"momentum {least:g}" + (f" to {most:g}" if most > least else "")

    def _quicken(self, layer: int) -> float | None:
        """Find the momentum that foretells the stretch's batches best; None where the layer's own is as good."""
        named, own = self._layers[layer], self._module(layer).momentum
        candidates = [own, *(each for each in QUICKER if each > own)]
        at = 0
        for rows in self._listener.rows:
            names = [each.name for each in rows.layout.layers]
            if named.name in names:
                number, sizes = names.index(named.name), rows.layout.sizes
                part = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
                momenta = [row[at : at + len(names)] for row in self._listener.momenta]
                batches = rows.batches(len(momenta), momenta)[..., part]
                errors = foretold(batches, rows.values[0, 0, :, part], self._eps[layer], candidates)
                errors = self._ranks.gather(errors.double().cpu()).mean(0)
                best = int(errors.nan_to_num(torch.inf).argmin())
                return candidates[best] if errors[best] < BETTER * errors[0] else None
            at += len(names)
        return None

    def _slow_all(self, layers: tuple[int, ...]) -> str:
        slowed = [layer for layer in layers if self._slow(layer)]
        return "momentum as it was" if slowed else ""

    def _slow(self, layer: int) -> bool:
        """Give a layer its momentum back, unless somebody else has changed it."""
        if layer not in self._momenta:
            return False
        before, now = self._momenta.pop(layer)
        module = self._module(layer)
        if module.momentum != now:
            return False
        module.momentum = before
        return True

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        _log.log(logging.INFO if event.over else logging.WARNING, "%s", event.text)
        if self.on_event is not None:
            self.on_event(event)

    def _module(self, layer: int) -> Norm:
        return self._layers[layer].module


def _chosen(model: nn.Module) -> tuple[list[NamedModule], dict[str, str]]:
    """Give the layers that can be watched, and why others cannot."""
    chosen, left = [], {}
    for named in named_modules_of(model):
        why = _why_not(named.module)
        if why is None:
            chosen.append(named)
        elif why:
            left[named.name] = why
    return chosen, left


def _why_not(module: Norm) -> str | None:
    """Say why a layer cannot be watched; empty for what is no batch norm, None for one that can be."""
    unknown = why_unknown(module)
    if unknown is not None:
        return unknown
    if not is_batch_norm(module):
        return ""
    if not isinstance(module.running_mean, Tensor):
        return "it has no running estimates"
    if getattr(module, "momentum", None) is None:
        return "it has no momentum by which running estimates follow each batch"
    if getattr(module, "update_every", 1) > 1 or getattr(module, "running", "exponential") != "exponential":
        return "its running estimates do not follow each batch by a momentum"
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
