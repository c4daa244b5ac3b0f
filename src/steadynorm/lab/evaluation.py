"""Evaluate a network on images that it was not trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.data import Dataset, Images, evaluation_batches
from steadynorm.lab.settings import Settings, autocast

__all__ = ["evaluate", "evaluated"]

EVALUATION_BATCH = 500
"""Images of up to 32 x 32 pixels in a batch; of larger images as many as have the same number of pixels."""


def evaluate(model: nn.Module, images: Images, dataset: Dataset, settings: Settings) -> tuple[float, float]:
    """Measure mean cross-entropy in nats and accuracy in [0, 1] in evaluation mode; restores the training mode."""
    loss, hits = evaluated(model, images, dataset, settings)
    return loss.item() / len(images), hits.item() / len(images)


@torch.no_grad()
def evaluated(model: nn.Module, images: Images, dataset: Dataset, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropies, and the number of images classified correctly."""
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=settings.device)
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    for x, labels in evaluation_batches(images, dataset=dataset, batch_size=_at_once(images), device=settings.device):
        with autocast(settings):
            logits = model(x).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        hits += (logits.argmax(1) == labels).sum()
    model.train(was_training)
    return loss, hits


def _at_once(images: Images) -> int:
    """Return the number of images in a batch, so that memory does not grow with their size."""
    height, width = images.pixels.shape[2:]
    return max(1, EVALUATION_BATCH * 32 * 32 // max(32 * 32, height * width))
