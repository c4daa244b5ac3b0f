"""Choose and apply the action for each verdict, and track the active ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steadynorm.doctor.watch.actions import QUICKER, Bound, Hold, prediction_errors, without
from steadynorm.doctor.watch.judge import Verdict
from steadynorm.doctor.watch.listener import Listener
from steadynorm.doctor.watch.recorder import Momenta, Rows
from steadynorm.layers import MaskedBatchNorm1d
from steadynorm.surgery.estimation.rank_group import RankGroup
from steadynorm.surgery.kinds import Norm, eps_of

__all__ = ["Reverts"]

BETTER, NEAR_BEST = 0.8, 1.1
"""Largest error of another momentum, as a fraction of the error of the layer's own. Among those whose error is within
the second factor of the least, the smallest momentum is chosen, since it averages most."""
HOLDING: dict[str, type[Hold]] = {
    "single-class-batch": Hold,
    "train-eval-gap": Bound,
    "collapsed-variance": Bound,
}
"""Check -> the action that holds its layers while the fault lasts."""


class Reverts:
    """Act on verdicts, and undo the active actions.

    Args:
        listener: the training's listener.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener, self._layers = listener, listener.layers
        self._held: dict[int, tuple[Hold, str]] = {}
        self._momenta: dict[int, tuple[float, float]] = {}

    def drop(self, bad: Sequence[Tensor]) -> None:
        """Remove the effect of batches from the running statistics of all layers.

        Args:
            bad: masks over the forwards of the stretch; a batch in any of them is removed.
        """
        if not bad:
            return
        for rows, momenta, _ in self._stretches():
            rows.layout.write(without(rows, momenta, torch.stack([*bad]).any(0)))

    def act(self, verdict: Verdict, ranks: RankGroup, *, can_hold: bool) -> str:
        """Apply the action for a verdict and describe it in a few words; empty if there is none.

        Args:
            verdict: a verdict whose batches are already removed.
            ranks: ranks that decide together.
            can_hold: whether the stored statistics are good enough to use.
        """
        layers = verdict.layers or tuple(range(len(self._layers)))
        match verdict.check:
            case "nonfinite-statistics":
                return "" if verdict.over else "put back"
            case "outlier-statistics":
                return "taken out"
            case "statistics-lag":
                return self._slow_all(layers) if verdict.over else self._catch_up(layers, ranks)
            case check if check in HOLDING:
                return self._release_all(layers, check) if verdict.over else self._hold_all(verdict, layers, can_hold)
        return ""

    def lift(self) -> None:
        """Undo all active actions."""
        for layer in [*self._held]:
            self.release(layer)
        self._slow_all([*self._momenta])

    def hold(self, layer: int, why: str, beside: tuple[Tensor, Tensor] | None = None) -> bool:
        """Hold a layer; return False if it is already held or cannot be."""
        module, way = self._module(layer), HOLDING[why]
        if "forward" in vars(module) or (way is Bound and isinstance(module, MaskedBatchNorm1d)):
            return False
        layout = next(each for each in self._listener.layouts if any(one.module is module for one in each.layers))
        self._held[layer] = way(layout, module, beside), why
        return True

    def release(self, layer: int) -> None:
        """Release a layer."""
        self._held.pop(layer)[0].release()

    def state_dict(self) -> dict[str, Any]:
        """Return the active actions."""
        held = {
            self._layers[layer].name: {"beside": [*hold.beside], "why": why}
            for layer, (hold, why) in self._held.items()
        }
        return {"held": held, "momenta": {self._layers[layer].name: [*pair] for layer, pair in self._momenta.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the active actions."""
        self.lift()
        layers = {each.name: number for number, each in enumerate(self._layers)}
        for name, held in state["held"].items():
            mean, var = (each.clone() for each in held["beside"])
            self.hold(layers[name], held["why"], (mean, var))
        for name, (before, now) in state["momenta"].items():
            self._module(layers[name]).momentum = now
            self._momenta[layers[name]] = before, now

    def _hold_all(self, verdict: Verdict, layers: Iterable[int], can_hold: bool) -> str:
        taken = "taken out" if verdict.rows is not None else ""
        if not verdict.lasting or not can_hold:
            return taken
        held = [layer for layer in layers if self.hold(layer, verdict.check)]
        return " and ".join(part for part in (taken, HOLDING[verdict.check].name if held else "") if part)

    def _release_all(self, layers: Iterable[int], why: str) -> str:
        held = [layer for layer in layers if layer in self._held and self._held[layer][1] == why]
        for layer in held:
            self.release(layer)
        return "let go" if held else ""

    def _catch_up(self, layers: Iterable[int], ranks: RankGroup) -> str:
        """Set running statistics to the average of the newest batches, with a better momentum if there is one."""
        follow = [each for each in layers if each not in self._held and self._module(each).momentum is not None]
        momenta = {layer: self._catch_up_one(layer, ranks) for layer in follow}
        found = sorted({each for each in momenta.values() if each is not None})
        if not momenta:
            return ""
        text = "set to the average of the newest batches"
        return text + (f", momentum {found[0]:g}" + (f" to {found[-1]:g}" if found[1:] else "") if found else "")

    def _catch_up_one(self, layer: int, ranks: RankGroup) -> float | None:
        rows, momenta, part = next(one for one in self._stretches(layer) if one[2] is not None)
        assert part is not None
        batches = rows.batches(momenta)[..., part]
        batches = batches[batches.isfinite().flatten(1).all(1)]
        first, newest = batches[: len(batches) // 2], batches[len(batches) // 2 :]
        module = self._module(layer)
        for running, average in zip(rows.layout.own(module), newest.mean(0), strict=True):
            running.data.copy_(average)
        if layer in self._momenta:
            return None
        candidates = [module.momentum, *(each for each in QUICKER if each > module.momentum)]
        errors = prediction_errors(newest, first.mean(0), eps_of(module), candidates)
        errors = ranks.gather(errors.double().cpu()).mean(0).nan_to_num(torch.inf)
        best = int((errors <= NEAR_BEST * errors.min()).int().argmax())
        if not errors[best] < BETTER * errors[0]:
            return None
        self._momenta[layer] = module.momentum, candidates[best]
        module.momentum = candidates[best]
        return float(candidates[best])

    def _slow_all(self, layers: Iterable[int]) -> str:
        """Restore the layers' momentum, unless the training has changed it since."""
        slowed = False
        for layer in layers:
            before, now = self._momenta.pop(layer, (None, None))
            if now is not None and self._module(layer).momentum == now:
                self._module(layer).momentum = before
                slowed = True
        return "momentum as it was" if slowed else ""

    def _stretches(self, layer: int | None = None) -> Iterator[tuple[Rows, list[Momenta], slice | None]]:
        """Yield each device's rows, its layers' momenta, and the slice of one layer's channels."""
        at = 0
        for rows in self._listener.rows:
            sizes = rows.layout.sizes
            part = None
            if layer is not None and at <= layer < at + len(sizes):
                begin = sum(sizes[: layer - at])
                part = slice(begin, begin + sizes[layer - at])
            yield rows, [row[at : at + len(sizes)] for row in self._listener.momenta], part
            at += len(sizes)

    def _module(self, layer: int) -> Norm:
        return self._layers[layer].module
