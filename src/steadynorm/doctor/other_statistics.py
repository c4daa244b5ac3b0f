"""Score a model with other statistics than its own: batch statistics in all layers or one, and recalibrated ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.compared import apart, may_matter, standing_out
from steadynorm.doctor.score import Score
from steadynorm.doctor.untouched import uncompiled
from steadynorm.layers.state import on_copies
from steadynorm.statistics import Moments
from steadynorm.surgery.batches import Forward
from steadynorm.surgery.change import Change
from steadynorm.surgery.contexts import input_of, name_of_input, replaced_forwards, use_batch_statistics
from steadynorm.surgery.estimation.one_pass import Pass, Target
from steadynorm.surgery.kinds import eps_of, kind_of
from steadynorm.surgery.named_modules import NamedModule
from steadynorm.surgery.recalibrate import recalibrate_

__all__ = ["OtherStatistics", "Trial", "by_own_statistics", "scored"]

ABLATION = 2
"""Batches on which single layers are tried with batch statistics."""
SMALL = 1e-5
"""Eps for layers without one, such as maskrcnn-benchmark's."""
_STATISTICS = ("running_mean", "running_var")
_SINGLE = re.compile("more than 1 (value per channel|spatial element)")
"""Matches torch's error for a single value per channel."""


@dataclass(frozen=True, kw_only=True)
class OtherStatistics:
    """Scores with other statistics; the fields are those of :class:`steadynorm.doctor.batch_evidence.Runs`."""

    by_batch: tuple[float, ...]
    one_layer: dict[str, tuple[float, ...]]
    few_layers: dict[tuple[str, ...], tuple[float, ...]]
    recalibrated: tuple[float, ...]
    off: dict[str, float]


class Trial:
    """Run a model on batches with other statistics, and score it.

    Args:
        model: in evaluation, without gradient.
        layers: its batch norms.
        batches: up to eight batches.
        forward: runs the model on a batch.
        score: scores its output.
        sightings: name of a layer -> its inputs in evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[NamedModule],
        batches: Sequence[Any],
        *,
        forward: Forward,
        score: Score,
        sightings: Mapping[str, Sequence[Sighting]],
    ) -> None:
        self._model, self._layers, self._batches, self._forward, self._score = model, layers, batches, forward, score
        self._sightings = sightings
        self._stored = {named.module for named in layers if named.module.running_mean is not None}
        self._single = {
            named.name: {each.batch for each in sightings.get(named.name, ()) if each.count == 1}
            for named in layers
            if _trains_by_batch(named.module)
        }

    def run(self, evaluation: Sequence[float], unread: list[str]) -> OtherStatistics:
        """Compute all scores.

        Args:
            evaluation: scores in evaluation, one for each batch.
            unread: receives a line on each score that could not be computed.
        """
        off: dict[str, float] = {}
        found, recalibrated = self._recalibrated(unread, off)
        rest = [at for at in range(len(self._batches)) if at not in found]
        found |= zip(rest, self._by_batch(self._layers, rest), strict=True)
        by_batch = tuple(found[at] for at in sorted(found))
        one_layer, few_layers = {}, {}
        if may_matter(self._score.name, evaluation, by_batch):
            first = range(len(self._batches[:ABLATION]))
            one_layer = {named.name: self._by_batch([named], first) for named in self._layers}
            few = standing_out(off)
            if few:
                chosen = [named for named in self._layers if named.name in few]
                few_layers[few] = one_layer[few[0]] if len(few) == 1 else self._by_batch(chosen, first)
        return OtherStatistics(
            by_batch=by_batch, one_layer=one_layer, few_layers=few_layers, recalibrated=recalibrated, off=off
        )

    def _recalibrated(self, unread: list[str], off: dict[str, float]) -> tuple[dict[int, float], tuple[float, ...]]:
        """Score every second batch with statistics measured in one pass over the others; empty if that cannot be done.

        Batches alternate, so that ordered data (by class, for instance) are in both halves. While statistics are
        measured, each layer uses batch statistics; if it also does so in training, the scores of these batches with
        batch statistics are returned as well, by batch number. ``off`` receives the distance of each layer's running
        statistics from the measured ones.
        """
        by_batch: dict[int, float] = {}
        if len(self._batches) < 2:
            return by_batch, ()
        counts = _train_by_batch(self._layers)
        before = {named.name: _stored(named) for named in self._layers if named.module in self._stored}

        def forward(model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (as the loader and the model give them)
            output = self._forward(model, batch)
            if counts:
                at = 2 * len(by_batch)
                by_batch[at] = math.nan if self._is_single(self._layers, at) else self._score(output, batch)
            return output

        try:
            with uncompiled():
                change: Change = recalibrate_(
                    self._model,
                    self._batches[::2],
                    where=lambda _, module: module in self._stored,
                    forward=forward,
                    passes=1,
                )
        except ValueError as error:  # nothing can be recalibrated, or a batch is not finite
            unread.append(f"the score with statistics measured now: {error}")
            return by_batch, ()
        try:
            changed = {each.name for each in change.changed}
            off |= {
                named.name: self._off(named, before[named.name])
                for named in self._layers
                if named.name in before and named.name in changed and counts
            }
            return by_batch, tuple(self._scored(at) for at in range(1, len(self._batches), 2))
        finally:
            change.undo()

    def _off(self, named: NamedModule, before: Moments) -> float:
        """Return the distance of other statistics from the present running statistics, beyond sampling."""
        seen = [each for each in self._sightings.get(named.name, ()) if each.batch % 2 == 0]
        noises = [each.noise for each in seen if math.isfinite(each.noise)]
        noise = sum(noises) / len(noises) if noises else 1.0
        error = noise / max(1, sum(each.samples for each in seen))
        distance = apart(before, _stored(named), eps=eps_of(named.module))
        return math.sqrt(max(0.0, distance**2 - 2 * error)) if math.isfinite(distance) else math.inf

    def _by_batch(self, layers: Sequence[NamedModule], numbers: Sequence[int]) -> tuple[float, ...]:
        """Score batches with batch statistics in some layers; NaN if a layer has one value per channel."""
        with self._batch_statistics(layers):
            return tuple(math.nan if self._is_single(layers, at) else self._scored(at) for at in numbers)

    @contextmanager
    def _batch_statistics(self, layers: Sequence[NamedModule]) -> Iterator[None]:
        """Make layers use batch statistics; in half the time if that is all they do in training."""
        if not _train_by_batch(layers):
            chosen = {named.module for named in layers}
            with use_batch_statistics(self._model, where=lambda _, module: module in chosen):
                yield
            return
        targets = [
            Target(name=each.name, module=each.module)
            for each in layers
            if each.module in self._stored and not _is_frozen(each)
        ]
        with Pass("diagnose", self._model, targets, self._forward).listening():
            yield

    def _is_single(self, layers: Sequence[NamedModule], number: int) -> bool:
        return any(number in self._single.get(named.name, ()) for named in layers)

    def _scored(self, number: int) -> float:
        return scored(self._model, self._batches[number], self._forward, self._score)


def by_own_statistics(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batches: Sequence[Any],
    forward: Forward,
    score: Score,
) -> tuple[float, ...]:
    """Score batches while layers normalize by the moments of their inputs; empty without layers.

    Args:
        model: in evaluation, without gradient.
        layers: instance norms, which normalize each sample by its own moments, as in training; or norms of mean 0 and
            variance 1, which normalize all samples together.
        batches: up to eight batches.
        forward: runs the model on a batch.
        score: scores its output.
    """

    def alone(module: Any) -> Callable[..., Any]:  # noqa: ANN401 (a norm)
        own, eps = module.forward, float(getattr(module, "eps", 0.0)) or SMALL

        def in_training(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
            with on_copies(module):
                module.training = True
                return own(*arguments, **named)

        def by_batch(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (likewise)
            x = functional.batch_norm(input_of(arguments, named), None, None, training=True, eps=eps)
            if arguments:
                return own(x, *arguments[1:], **named)
            return own(**{**named, name_of_input(named): x})

        return in_training if isinstance(module, _InstanceNorm) else by_batch

    if not layers:
        return ()
    with replaced_forwards({named.module: alone(named.module) for named in layers}):
        return tuple(scored(model, batch, forward, score) for batch in batches)


def scored(model: nn.Module, batch: Any, forward: Forward, score: Score) -> float:  # noqa: ANN401 (as the loader gives it)
    """Score a model on a batch; NaN if a layer cannot use batch statistics."""
    try:
        return score(forward(model, batch), batch)
    except ValueError as error:
        if not _SINGLE.search(str(error)):
            raise
        return math.nan


def _stored(named: NamedModule) -> Moments:
    mean, var = (getattr(named.module, name).detach().to("cpu", torch.float64, copy=True) for name in _STATISTICS)
    return Moments(mean=mean, var=var, count=1)


def _train_by_batch(layers: Sequence[NamedModule]) -> bool:
    """Return whether training these layers equals evaluating them with batch statistics."""
    return all(_is_frozen(named) or _trains_by_batch(named.module) for named in layers)


def _is_frozen(named: NamedModule) -> bool:
    return kind_of(named.module)[0].name == "frozen_batch_norm"


def _trains_by_batch(module: Any) -> bool:  # noqa: ANN401 (a batch norm)
    stored = module.running_mean
    return kind_of(module)[0].trains_by_batch and (stored is None or stored.dtype in (torch.float32, torch.float64))
