"""How well an adaptation method predicts a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from steadynorm.adaptation import ADAPTATIONS, Adaptation, Calibration
from steadynorm.lab.data import Dataset, Images, evaluation_batches, take
from steadynorm.lab.settings import Settings, autocast
from steadynorm.reporting.failure import check_known
from steadynorm.reporting.records import Measurement

__all__ = ["check_methods", "judge_methods", "stream_accuracy"]


def check_methods(names: Sequence[str]) -> None:
    """Refuse an unknown adaptation method.

    Raises:
        UserError: a name is unknown.
    """
    check_known("--methods", names, ADAPTATIONS, what="way to adapt")


def judge_methods(
    methods: Sequence[str],
    model: nn.Module,
    calibration: Calibration,
    images: Images,
    order: Sequence[Tensor],
    *,
    dataset: Dataset,
    settings: Settings,
    advance: Callable[[float, str], None],
) -> Iterator[Measurement]:
    """Measure the ``accuracy`` of each way to adapt, as subjects, on a stream that all of them see alike.

    Args:
        methods: names of :data:`ADAPTATIONS`.
        calibration: of ``model``.
        advance: is told what share of the methods is done.

    The rest is as for :func:`stream_accuracy`.
    """
    for number, method in enumerate(methods, start=1):
        adaptation = ADAPTATIONS[method](calibration)
        accuracy = stream_accuracy(adaptation, model, images, order, dataset=dataset, settings=settings)
        yield Measurement(subject=method, quantity="accuracy", value=accuracy)
        advance(number / len(methods), "")


def stream_accuracy(
    adaptation: Adaptation,
    model: nn.Module,
    images: Images,
    order: Sequence[Tensor],
    *,
    dataset: Dataset,
    settings: Settings,
) -> float:
    """Give the share of a stream's images that are predicted right, each batch before the next is seen.

    Args:
        adaptation: forgets what it has seen before.
        model: stays as it is.
        images: what the stream shows.
        order: its batches, as indices into ``images``.
        dataset: whose mean and std normalise the images.
        settings: device and precision of the forwards.

    Raises:
        ValueError: the stream has no images.
    """
    count = sum(len(chosen) for chosen in order)
    if count == 0:
        raise ValueError("stream_accuracy: a stream must have images, got none.")
    adaptation.reset()
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    for chosen in order:
        shown = take(images, chosen)
        ((x, labels),) = evaluation_batches(shown, dataset=dataset, batch_size=len(shown), device=settings.device)
        with autocast(settings):
            logits = adaptation.predict(model, x)
        hits += (logits.argmax(1) == labels).sum()
    return int(hits) / count
