"""What a few batches show: each layer's input in evaluation, and what the model scores by which statistics."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.doctor.compared import may_matter
from steadynorm.doctor.evidence import Runs, Sighting
from steadynorm.doctor.first_batch import look_closely
from steadynorm.doctor.score import Measure, Score, labels_of, score_from
from steadynorm.doctor.sightings import watching
from steadynorm.doctor.untouched import uncompiled
from steadynorm.surgery.batches import Batches, Forward, evaluating
from steadynorm.surgery.contexts import use_batch_statistics
from steadynorm.surgery.flow.trial import preserved_state, tensors_in
from steadynorm.surgery.kinds import is_batch_norm, why_unknown
from steadynorm.surgery.named_modules import NamedModule, batch_norms_of, named_modules_of
from steadynorm.surgery.recalibrate import recalibrate_
from steadynorm.surgery.runnable import check_runnable

__all__ = ["MOST_BATCHES", "run_batches", "run_reference", "scores_of"]

MOST_BATCHES = 8
"""Batches that are looked at, of more."""
ABLATION = 2
"""Batches on which one layer after the other is given the batch's own statistics."""
_OTHERS = (nn.GroupNorm, nn.LayerNorm)
"""Norms without statistics whose output is compared with the formula."""


def run_batches(
    model: nn.Module,
    batches: Batches,
    forward: Forward,
    *,
    loss: Measure | None = None,
    metric: Measure | None = None,
) -> Runs:
    """Run a model over batches and leave no trace: modes, buffers, hooks and random numbers are put back.

    1. In evaluation, with the moments of each batch norm's input.
    2. In evaluation but for the batch norms, which take the batch's statistics.
    3. Where that is better: on two batches, one layer after the other taking the batch's statistics.
    4. In evaluation on every second batch, with statistics measured on the others.
    5. One batch in evaluation, looked at closely, and its first half; one forward and backward in training.

    Without a score, 2 to 4 are left out.

    Args:
        model: the plain model.
        batches: up to eight are looked at.
        forward: runs the model on a batch.
        loss: see :func:`steadynorm.doctor.diagnose`.
        metric: likewise.

    Raises:
        ValueError: there are no batches, or the model holds no numbers yet.
    """
    check_runnable("diagnose", model)
    last = _last_samples(batches.source)
    kept = _first(batches)
    layers = batch_norms_of(model)
    norms = [*layers, *(named for named in named_modules_of(model) if _is_other_norm(named.module))]
    unread: list[str] = []
    with preserved_state(model):
        shown = _scored(model, layers, kept, forward, loss, metric, unread)
        with evaluating(model):
            close = look_closely(model, norms, kept[0], forward, unread)
    labels = _labels(kept)
    return replace(
        shown,
        **vars(close),
        updates=_updates(model, layers, kept[0], forward, unread),
        labels=labels,
        classes=tuple(dict(Counter(each)) for each in labels),
        last_samples=last,
        unread=tuple(unread),
    )


def run_reference(
    model: nn.Module,
    batches: Batches,
    forward: Forward,
    *,
    loss: Measure | None = None,
    metric: Measure | None = None,
) -> Runs:
    """Run a model over batches in evaluation, for the inputs of its batch norms and the score alone; as run_batches."""
    check_runnable("diagnose", model)
    kept = _first(batches)
    seen: dict[str, list[Sighting]] = {}
    with preserved_state(model), evaluating(model):
        outputs = _watched(model, batch_norms_of(model), kept, forward, seen)
        score = score_from(loss, metric, outputs[0], kept[0])
        scores = () if score is None else tuple(map(score, outputs, kept))
    return Runs(
        batches=len(kept),
        sightings={name: tuple(each) for name, each in seen.items()},
        score="" if score is None else score.name,
        evaluation=scores,
        labels=_labels(kept),
    )


def _first(batches: Batches) -> list[Any]:
    kept = list(itertools.islice(batches, MOST_BATCHES))
    if not kept:
        raise ValueError("diagnose: there must be at least one batch, got none. See what the loader gives.")
    return kept


def _watched(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batches: Sequence[Any],
    forward: Forward,
    seen: dict[str, list[Sighting]],
) -> list[Any]:
    """Run the batches, and note what the layers are given; give the outputs."""
    seen.update({named.name: [] for named in layers})
    outputs = []
    with watching({named.module: seen[named.name] for named in layers}) as mark:
        for at, batch in enumerate(batches):
            mark(at)
            outputs.append(forward(model, batch))
    return outputs


def _scored(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batches: Sequence[Any],
    forward: Forward,
    loss: Measure | None,
    metric: Measure | None,
    unread: list[str],
) -> Runs:
    """Give the inputs of the layers and the scores."""
    with evaluating(model):
        seen: dict[str, list[Sighting]] = {}
        outputs = _watched(model, layers, batches, forward, seen)
        sightings = {name: tuple(each) for name, each in seen.items()}
        score = score_from(loss, metric, outputs[0], batches[0])
        if score is None:
            return Runs(batches=len(batches), sightings=sightings)
        evaluation = tuple(map(score, outputs, batches))
        del outputs
        scorer = _Scorer(model, forward, score)
        known = {named.module for named in layers}
        with use_batch_statistics(model, where=lambda _, module: module in known):
            by_batch = scorer(batches)
        one_layer = {}
        if may_matter(score.name, evaluation, by_batch):
            for named in layers:
                with use_batch_statistics(model, where=partial(_is, named.module)):
                    one_layer[named.name] = scorer(batches[:ABLATION])
        return Runs(
            batches=len(batches),
            sightings=sightings,
            score=score.name,
            evaluation=evaluation,
            by_batch=by_batch,
            one_layer=one_layer,
            recalibrated=_recalibrated(model, batches, scorer, unread),
        )


def _updates(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
    unread: list[str],
) -> dict[str, int]:
    """Train for one step without an optimizer, and count updates beyond one for each call."""
    counted: dict[str, Any] = {
        named.name: named.module
        for named in layers
        if isinstance(getattr(named.module, "num_batches_tracked", None), Tensor)
    }
    calls = dict.fromkeys(counted, 0)

    def count(name: str, *_: object) -> None:
        calls[name] += 1

    gradients = [(each, each.grad) for each in model.parameters()]
    if any(getattr(each, "_post_accumulate_grad_hooks", None) for each, _ in gradients):
        unread.append("a step of training, for double updates: a backward would run the hooks that gradients have.")
        return {}
    with preserved_state(model), uncompiled():
        before = {name: int(module.num_batches_tracked) for name, module in counted.items()}
        handles = [module.register_forward_pre_hook(partial(count, name)) for name, module in counted.items()]
        try:
            for module in model.modules():
                module.training = True
            for parameter, _ in gradients:
                parameter.grad = None
            with torch.enable_grad():
                output = forward(model, batch)
                made = dict(calls)
                total = sum(each.double().sum() for _, each in tensors_in(output) if each.requires_grad)
                if isinstance(total, Tensor):
                    total.backward()  # type: ignore[no-untyped-call]
        except (ValueError, RuntimeError) as error:  # one value per channel, a forward without gradient, no memory
            unread.append(f"a step of training, for double updates: {error}")
            return {}
        finally:
            for handle in handles:
                handle.remove()
            for parameter, gradient in gradients:
                parameter.grad = gradient
        after = {name: int(module.num_batches_tracked) for name, module in counted.items()}
    return {name: after[name] - before[name] - made[name] for name in calls}


def _labels(batches: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    found = [labels_of(batch) for batch in batches]
    if any(labels is None for labels in found):
        return ()
    return tuple(tuple(labels.tolist()) for labels in found if labels is not None)


def _last_samples(loader: object) -> int | None:
    """Give the size of an epoch's last batch, where the loader tells and it is smaller than the others."""
    size, drop = getattr(loader, "batch_size", None), getattr(loader, "drop_last", True)
    sampler = getattr(loader, "sampler", None)
    if not isinstance(size, int) or drop or not isinstance(sampler, Sized):
        return None
    return len(sampler) % size or None


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


def _recalibrated(model: nn.Module, batches: Sequence[Any], scorer: _Scorer, unread: list[str]) -> tuple[float, ...]:
    """Score every second batch with statistics measured in one pass over the others; empty if that cannot be done.

    By turns, so that data in an order, such as that of the classes, are in both halves.
    """
    if len(batches) < 2:
        return ()
    stored = {module for module in model.modules() if is_batch_norm(module) and module.running_mean is not None}
    try:
        with uncompiled():
            change = recalibrate_(
                model, batches[::2], where=lambda _, module: module in stored, forward=scorer.forward, passes=1
            )
    except ValueError as error:  # nothing that could be recalibrated, or a batch that is not finite
        unread.append(f"what statistics measured now would give: {error}")
        return ()
    try:
        return scorer(batches[1::2])
    finally:
        change.undo()


def _is_other_norm(module: nn.Module) -> bool:
    """Tell whether it is a norm of another kind, or a batch norm of which it is not known what it computes."""
    return isinstance(module, _OTHERS) or why_unknown(module) is not None
