"""What a few batches show: each layer's input in evaluation, and what the model scores by which statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.doctor.evidence import NormState, Runs, Sighting
from steadynorm.doctor.score import Measure, Score, score_from
from steadynorm.statistics import measure
from steadynorm.statistics.noise import sample_noise
from steadynorm.surgery.batches import Batches, Forward, evaluating
from steadynorm.surgery.contexts import replaced_forwards, use_batch_statistics
from steadynorm.surgery.flow.trial import preserved_state
from steadynorm.surgery.kinds import is_batch_norm
from steadynorm.surgery.named_modules import batch_norms_of
from steadynorm.surgery.recalibrate import recalibrate_
from steadynorm.surgery.runnable import check_runnable

__all__ = ["MOST_BATCHES", "run_batches", "scores_of"]

MOST_BATCHES = 8
"""Batches that are looked at, of more."""
ABLATION = 2
"""Batches on which one layer after the other is given the batch's own statistics."""


def run_batches(
    model: nn.Module,
    norms: Sequence[NormState],
    batches: Batches,
    forward: Forward,
    *,
    loss: Measure | None = None,
    metric: Measure | None = None,
) -> Runs:
    """Run a model over batches and leave no trace: modes, buffers, hooks and random numbers are put back.

    1. In evaluation, with the moments of each batch norm's input.
    2. In evaluation but for the batch norms, which take the batch's statistics.
    3. On two batches, one layer after the other taking the batch's statistics, the others evaluating.
    4. In evaluation on the second half of the batches, with statistics measured on the first half.

    Only the first where there is no score.

    Args:
        model: the plain model.
        norms: its norms.
        batches: up to eight are looked at.
        forward: runs the model on a batch.
        loss: see :func:`steadynorm.doctor.diagnose`.
        metric: likewise.

    Raises:
        ValueError: there are no batches, or the model holds no numbers yet.
    """
    check_runnable("diagnose", model)
    kept = list(itertools.islice(batches, MOST_BATCHES))
    if not kept:
        raise ValueError("diagnose: there must be at least one batch, got none. See what the loader gives.")
    layers = batch_norms_of(model)
    with preserved_state(model), evaluating(model):
        seen: dict[str, list[Sighting]] = {named.name: [] for named in layers}
        outputs = []
        with _watching({named.module: seen[named.name] for named in layers}) as mark:
            for at, batch in enumerate(kept):
                mark(at)
                outputs.append(forward(model, batch))
        score = score_from(loss, metric, outputs[0], kept[0])
        if score is None:
            return Runs(batches=len(kept), sightings={name: tuple(each) for name, each in seen.items()})
        evaluation = tuple(map(score, outputs, kept))
        del outputs
        scorer = _Scorer(model, forward, score)
        with use_batch_statistics(model):
            by_batch = scorer(kept)
        one_layer = {}
        for named in layers:
            with use_batch_statistics(model, where=partial(_is, named.module)):
                one_layer[named.name] = scorer(kept[:ABLATION])
        recalibrated = _recalibrated(model, kept, scorer)
    return Runs(
        batches=len(kept),
        sightings={name: tuple(each) for name, each in seen.items()},
        score=score.name,
        evaluation=evaluation,
        by_batch=by_batch,
        one_layer=one_layer,
        recalibrated=recalibrated,
    )


def _is(chosen: nn.Module, name: str, module: nn.Module) -> bool:
    return module is chosen


def scores_of(
    model: nn.Module, batches: Sequence[Any], forward: Forward, *, loss: Measure | None, metric: Measure | None
) -> tuple[float, ...]:
    """Score a model in evaluation, and leave no trace; empty where there is nothing to score by."""
    with preserved_state(model), evaluating(model):
        first = forward(model, batches[0])
        score = score_from(loss, metric, first, batches[0])
        return () if score is None else _Scorer(model, forward, score)(batches)


class _Scorer:
    """Runs the model on batches as it is, and scores it."""

    def __init__(self, model: nn.Module, forward: Forward, score: Score) -> None:
        self._model, self._forward, self._score = model, forward, score

    def __call__(self, batches: Sequence[Any]) -> tuple[float, ...]:
        """Give a number for each batch; NaN where a layer cannot normalize by the batch."""
        return tuple(map(self._of, batches))

    def forward(self, model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (as the model gives it)
        """Run a model on a batch."""
        return self._forward(model, batch)

    def _of(self, batch: Any) -> float:  # noqa: ANN401 (as the loader gives it)
        try:
            return self._score(self._forward(self._model, batch), batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return math.nan


def _recalibrated(model: nn.Module, batches: Sequence[Any], scorer: _Scorer) -> tuple[float, ...]:
    """Score the second half of the batches with statistics measured in one pass over the first; empty if impossible."""
    half = len(batches) // 2
    if not half:
        return ()
    stored = {module for module in model.modules() if is_batch_norm(module) and module.running_mean is not None}
    try:
        change = recalibrate_(
            model, batches[:half], where=lambda _, module: module in stored, forward=scorer.forward, passes=1
        )
    except ValueError:  # nothing that could be recalibrated, or a batch that is not finite
        return ()
    try:
        return scorer(batches[half:])
    finally:
        change.undo()


@contextmanager
def _watching(layers: dict[nn.Module, list[Sighting]]) -> Iterator[Callable[[int], None]]:
    """Note the moments of every input of the layers; what is given says which batch runs."""
    current = 0

    def mark(batch: int) -> None:
        nonlocal current
        current = batch

    def watched(module: nn.Module, seen: list[Sighting]) -> Callable[..., Any]:
        inner = vars(module).get("forward")

        def forward(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
            x = arguments[0] if arguments else named["input"]
            if isinstance(x, Tensor) and x.numel():
                seen.append(_sighting(x, current, sum(each.batch == current for each in seen)))
            return inner(*arguments, **named) if inner else type(module).forward(module, *arguments, **named)

        return forward

    with replaced_forwards({module: watched(module, seen) for module, seen in layers.items()}):
        yield mark


def _sighting(x: Tensor, batch: int, call: int) -> Sighting:
    moments = measure(x)
    noise = float(sample_noise(x, moments)) if len(x) > 1 else math.nan
    mean, var = (each.detach().to("cpu", torch.float64) for each in (moments.mean, moments.var))
    return Sighting(batch=batch, call=call, mean=mean, var=var, count=int(moments.count), samples=len(x), noise=noise)
