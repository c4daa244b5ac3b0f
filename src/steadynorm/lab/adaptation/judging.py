"""How well a way to adapt predicts a stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steadynorm.lab.adaptation.methods import ADAPTATIONS, Adaptation
from steadynorm.lab.data import Dataset, Images, evaluation_batches
from steadynorm.lab.failure import UserError
from steadynorm.lab.training import Settings, autocast

__all__ = ["check_methods", "stream_accuracy"]


def check_methods(names: Sequence[str]) -> None:
    """Refuse a way to adapt that nobody knows.

    Raises:
        UserError: so it is.
    """
    for name in names:
        if name not in ADAPTATIONS:
            raise UserError(f"--methods: no way to adapt is called {name!r}. Choose from {', '.join(ADAPTATIONS)}.")


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
    ((pixels, labels),) = evaluation_batches(images, dataset=dataset, batch_size=len(images), device=settings.device)
    adaptation.reset()
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    for chosen in order:
        rows = chosen.to(settings.device)
        with autocast(settings):
            logits = adaptation.predict(model, pixels[rows].contiguous(memory_format=torch.channels_last))
        hits += (logits.argmax(1) == labels[rows]).sum()
    return int(hits) / count
