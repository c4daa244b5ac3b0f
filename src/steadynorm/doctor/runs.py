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
from torch.utils._pytree import tree_map

from steadynorm.doctor.evidence import Runs, Sighting
from steadynorm.doctor.score import Measure, Score, labels_of, score_from
from steadynorm.doctor.sightings import watching
from steadynorm.surgery.batches import Batches, Forward, evaluating
from steadynorm.surgery.contexts import use_batch_statistics
from steadynorm.surgery.flow.trial import preserved_state, tensors_in
from steadynorm.surgery.kinds import is_batch_norm
from steadynorm.surgery.named_modules import NamedModule, batch_norms_of
from steadynorm.surgery.recalibrate import recalibrate_
from steadynorm.surgery.runnable import check_runnable

__all__ = ["MOST_BATCHES", "run_batches", "scores_of"]

MOST_BATCHES = 8
"""Batches that are looked at, of more."""
_SAME = 1e-4
"""Relative difference that rounding explains."""
ABLATION = 2
"""Batches on which one layer after the other is given the batch's own statistics."""


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
    3. On two batches, one layer after the other taking the batch's statistics, the others evaluating.
    4. In evaluation on the second half of the batches, with statistics measured on the first half.
    5. One batch in evaluation, and its first half; one forward and backward in training.

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
    kept = list(itertools.islice(batches, MOST_BATCHES))
    if not kept:
        raise ValueError("diagnose: there must be at least one batch, got none. See what the loader gives.")
    layers = batch_norms_of(model)
    unread: list[str] = []
    with preserved_state(model):
        shown = _scored(model, layers, kept, forward, loss, metric, unread)
        with evaluating(model):
            moved = _moved(model, layers, kept[0], forward)
        with evaluating(model):
            dependent, dependence = _dependent(model, layers, kept[0], forward)
    return replace(
        shown,
        moved=moved,
        dependent=dependent,
        dependence=dependence,
        updates=_updates(model, layers, kept[0], forward, unread),
        classes=_classes(kept),
        last_samples=last,
        unread=tuple(unread),
    )


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
        seen: dict[str, list[Sighting]] = {named.name: [] for named in layers}
        outputs = []
        with watching({named.module: seen[named.name] for named in layers}) as mark:
            for at, batch in enumerate(batches):
                mark(at)
                outputs.append(forward(model, batch))
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


def _moved(model: nn.Module, layers: Sequence[NamedModule], batch: Any, forward: Forward) -> tuple[str, ...]:  # noqa: ANN401
    """Name the layers whose running estimates a forward in evaluation moves."""
    before = {named.name: _statistics(named.module) for named in layers}
    forward(model, batch)
    return tuple(named.name for named in layers if _differ(before[named.name], _statistics(named.module)))


def _dependent(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
) -> tuple[tuple[str, ...], float]:
    """Run a batch and its first half, and name the layers that treat the same samples otherwise."""
    half = _first_half(batch)
    if half is None:
        return (), 0.0
    whole_seen, half_seen = (_inputs_and_outputs(model, layers, each, forward) for each in (batch, half))
    guilty = []
    for named in layers:
        first, second = whole_seen[named.name], half_seen[named.name]
        if len(first) == len(second) == 1:
            (x, y), (half_x, half_y) = first[0], second[0]
            if _distance(x, half_x) <= _SAME < _distance(y, half_y):
                guilty.append(named.name)
    return tuple(guilty), _distance(whole_seen[""][0][1], half_seen[""][0][1])


def _inputs_and_outputs(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Give what each layer was given and gave, call by call; of the model, under an empty name, the output twice."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {named.name: [] for named in layers}

    def note(name: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        if arguments and isinstance(arguments[0], Tensor) and isinstance(output, Tensor):
            seen[name].append((arguments[0].detach(), output.detach()))

    handles = [named.module.register_forward_hook(partial(note, named.name)) for named in layers]
    try:
        output = forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    tensor = next((each for _, each in tensors_in(output) if each.is_floating_point() and each.dim()), torch.zeros(1))
    return seen | {"": [(tensor, tensor)]}


def _distance(whole: Tensor, half: Tensor) -> float:
    """Give the largest difference for the samples that both have, relative to the largest magnitude; 0 for none."""
    number = min(len(whole), len(half))
    if whole.shape[1:] != half.shape[1:] or number == 0:
        return 0.0
    first, second = whole[:number].float(), half[:number].float()
    size = first.abs().nan_to_num(0, 0, 0).max()
    return float((first - second).abs().nan_to_num(0, 0, 0).max() / size) if size > 0 else 0.0


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
    with preserved_state(model):
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


def _classes(batches: Sequence[Any]) -> tuple[dict[int, int], ...]:
    found = [labels_of(batch) for batch in batches]
    if any(labels is None for labels in found):
        return ()
    return tuple(dict(Counter(labels.tolist())) for labels in found if labels is not None)


def _last_samples(loader: object) -> int | None:
    """Give the size of an epoch's last batch, where the loader tells and it is smaller than the others."""
    size, drop = getattr(loader, "batch_size", None), getattr(loader, "drop_last", True)
    sampler = getattr(loader, "sampler", None)
    if not isinstance(size, int) or drop or not isinstance(sampler, Sized):
        return None
    return len(sampler) % size or None


def _statistics(module: Any) -> list[Tensor]:  # noqa: ANN401 (a batch norm)
    stored = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return [each.detach().clone() for each in stored if isinstance(each, Tensor)]


def _differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return any(not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(first, second, strict=True))


def _first_half(batch: Any) -> Any:  # noqa: ANN401 (as the loader gives it)
    """Give the first half of a batch's samples; None where it has fewer than 4, or no tensors."""
    tensors = [each for _, each in tensors_in(batch) if each.dim()]
    number = min((len(each) for each in tensors), default=0)
    if number < 4:
        return None
    return tree_map(lambda leaf: leaf[: number // 2] if isinstance(leaf, Tensor) and leaf.dim() else leaf, batch)


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
    """Score the second half of the batches with statistics measured in one pass over the first; empty if impossible."""
    half = len(batches) // 2
    if not half:
        return ()
    stored = {module for module in model.modules() if is_batch_norm(module) and module.running_mean is not None}
    try:
        change = recalibrate_(
            model, batches[:half], where=lambda _, module: module in stored, forward=scorer.forward, passes=1
        )
    except ValueError as error:  # nothing that could be recalibrated, or a batch that is not finite
        unread.append(f"what statistics measured now would give: {error}")
        return ()
    try:
        return scorer(batches[half:])
    finally:
        change.undo()
