"""Collect evidence from a few batches: each layer's inputs in evaluation, and scores with different statistics."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence, Sized
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from steadynorm.doctor.batch_evidence import Runs, Sighting
from steadynorm.doctor.copies import look_at_copies
from steadynorm.doctor.evidence import Twins
from steadynorm.doctor.first_batch import FirstBatch, look_closely, samples_of
from steadynorm.doctor.other_statistics import Trial, by_own_statistics, scored
from steadynorm.doctor.parity import has_tail
from steadynorm.doctor.score import Measure, labels_of, logits_of, mixes_labels, score_from
from steadynorm.doctor.sightings import watching
from steadynorm.doctor.training_step import train_once
from steadynorm.surgery.batches import Batches, Forward, evaluating
from steadynorm.surgery.flow.trial import preserved_state
from steadynorm.surgery.kinds import why_unknown
from steadynorm.surgery.named_modules import NamedModule, batch_norms_of, named_modules_of
from steadynorm.surgery.runnable import check_runnable

__all__ = ["MOST_BATCHES", "run_batches", "run_reference", "scores_of"]

MOST_BATCHES = 8
"""Largest number of batches used."""
_OTHERS = (nn.GroupNorm, nn.LayerNorm)
"""Norms without running statistics whose output is compared with the formula."""


_MIXED = (
    "whether batches are drawn at random: their samples are mixed with one another, as by mixup; give batches without"
)


def run_batches(
    model: nn.Module,
    batches: Batches,
    forward: Forward,
    *,
    loss: Measure | None = None,
    metric: Measure | None = None,
    twins: Sequence[Twins] = (),
) -> Runs:
    """Run a model over batches; restore modes, buffers, hooks and random numbers afterwards.

    1. In evaluation, recording the moments of each batch norm's input; the first batch and two of its samples are
       examined closely.
    2. In evaluation, but with batch statistics in the batch norms. On every second batch these are kept.
    3. In evaluation on the other batches, with the statistics kept in 2.
    4. If 2 is better than 1: on two batches, with batch statistics in one layer after the other.
    5. One forward and backward in training, on a few samples.
    6. If a part is a copy of another and the forward does not call it: once more, with the copy on the same inputs.

    Without a score, 2 to 4 are skipped. For eight batches, 1 to 3 and 5 take some 20 forwards of a batch, and 4 takes
    two for each layer. Kinds that use more than batch statistics in training, such as renorm, take four more, because
    2 and the measurement for 3 are separate runs.

    Args:
        model: the plain model.
        batches: at most eight are used.
        forward: runs the model on a batch.
        loss: see :func:`steadynorm.doctor.diagnose`.
        metric: see :func:`steadynorm.doctor.diagnose`.
        twins: parts of the model that are copies of each other.

    Raises:
        ValueError: there are no batches, or the model's parameters are not initialized.
    """
    check_runnable("diagnose", model)
    last = _last_samples(batches.source)
    kept = _first(batches)
    layers = batch_norms_of(model)
    norms = [*layers, *(named for named in named_modules_of(model) if _is_other_norm(named.module))]
    unread: list[str] = []
    seen: dict[str, list[Sighting]] = {named.name: [] for named in layers}
    scores: dict[str, Any] = {}
    with preserved_state(model), evaluating(model):
        watched = watching({named.module: seen[named.name] for named in layers}, 0)
        output, close = look_closely(model, norms, kept[0], forward, watched, unread)
        outputs = [output, *_watched(model, layers, kept, forward, seen, first=1)]
        score, classes = score_from(loss, metric, output, kept[0]), _classes_in(output)
        if score is not None:
            evaluation = tuple(map(score, outputs, kept))
            del output, outputs
            trial = Trial(model, layers, kept, forward=forward, score=score, sightings=seen)
            scores = {"score": score.name, "evaluation": evaluation, **vars(trial.run(evaluation, unread))}
            tracked = [named for named in norms if _is_tracked_instance_norm(named.module)]
            constant = [named for named in norms if _is_of_constants(named, close)]
            scores["by_sample"] = by_own_statistics(model, tracked, kept, forward, score)
            scores["of_constants"] = by_own_statistics(model, constant, kept, forward, score)
        reached = {name for name, each in seen.items() if each}
        copies = look_at_copies(model, twins, reached, kept[0], forward, unread)
    labels, mixed = _labels(kept, classes), any(map(mixes_labels, kept))
    if mixed:
        unread.append(_MIXED)
    return Runs(
        batches=len(kept),
        sightings={name: tuple(each) for name, each in seen.items()},
        copies=copies,
        **scores,
        **vars(close),
        **vars(train_once(model, norms, kept[0], forward, unread)),
        labels=labels,
        mixed=mixed,
        outputs=classes,
        classes=tuple(dict(Counter(each)) for each in labels),
        sizes=tuple(map(samples_of, kept)),
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
    """Run a model over batches in evaluation as :func:`run_batches`, for the batch norms' inputs and the score only."""
    check_runnable("diagnose", model)
    kept, layers = _first(batches), batch_norms_of(model)
    seen: dict[str, list[Sighting]] = {named.name: [] for named in layers}
    with preserved_state(model), evaluating(model):
        outputs = _watched(model, layers, kept, forward, seen)
        score = score_from(loss, metric, outputs[0], kept[0])
        scores = () if score is None else tuple(map(score, outputs, kept))
    return Runs(
        batches=len(kept),
        sightings={name: tuple(each) for name, each in seen.items()},
        score="" if score is None else score.name,
        evaluation=scores,
        labels=_labels(kept, _classes_in(outputs[0])),
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
    first: int = 0,
) -> list[Any]:
    """Run the batches in order, record the layers' inputs, and return the outputs."""
    outputs = []
    for at in range(first, len(batches)):
        with watching({named.module: seen[named.name] for named in layers}, at):
            outputs.append(forward(model, batches[at]))
    return outputs


def _classes_in(output: Any) -> int:  # noqa: ANN401 (as the model gives it)
    """Return the number of classes of the output's logits; 0 without logits."""
    logits = logits_of(output)
    return 0 if logits is None else logits.shape[1]


def _labels(batches: Sequence[Any], classes: int = 0) -> tuple[tuple[int, ...], ...]:
    """Return the labels of each batch; in batches of three items or more the second must fit the model's classes.

    Otherwise it may be lengths, as in (tokens, lengths, labels).
    """
    found = [labels_of(batch) for batch in batches]
    if any(labels is None for labels in found):
        return ()
    labels = tuple(tuple(each.tolist()) for each in found if each is not None)
    longer = any(isinstance(batch, tuple | list) and len(batch) > 2 for batch in batches)
    fit = all(0 <= label < classes for each in labels for label in each)
    return () if longer and not fit else labels


def _last_samples(loader: object) -> int | None:
    """Return the size of an epoch's last batch, if the loader tells and it is smaller than the others."""
    size, drop = getattr(loader, "batch_size", None), getattr(loader, "drop_last", True)
    sampler = getattr(loader, "sampler", None)
    if not isinstance(size, int) or drop or not isinstance(sampler, Sized):
        return None
    return len(sampler) % size or None


def scores_of(
    model: nn.Module, batches: Sequence[Any], forward: Forward, *, loss: Measure | None, metric: Measure | None
) -> tuple[float, ...]:
    """Score a model in evaluation and leave it unchanged; empty without a score."""
    with preserved_state(model), evaluating(model):
        first = forward(model, batches[0])
        score = score_from(loss, metric, first, batches[0])
        return () if score is None else tuple(scored(model, batch, forward, score) for batch in batches)


def _is_tracked_instance_norm(module: nn.Module) -> bool:
    return isinstance(module, _InstanceNorm) and isinstance(module.running_mean, Tensor)


def _is_of_constants(named: NamedModule, close: FirstBatch) -> bool:
    """Return whether a layer is a frozen norm of mean 0 and variance 1 whose output matches the formula."""
    module: Any = named.module
    numbers = [getattr(module, name, None) for name in ("running_mean", "running_var", "weight", "bias")]
    if any(not isinstance(each, Tensor) or isinstance(each, nn.Parameter) or each.is_meta for each in numbers):
        return False
    found = close.parity.get(named.name)
    at_start = not module.running_mean.any() and bool((module.running_var == 1).all())
    return at_start and found is not None and not found.error and not has_tail(module)


def _is_other_norm(module: nn.Module) -> bool:
    """Return whether it is a norm of another kind, or a batch norm with an unknown computation."""
    return isinstance(module, _OTHERS) or why_unknown(module) is not None
