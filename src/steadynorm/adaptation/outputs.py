"""Outputs of a model, and their accuracy."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_logits", "hits", "image_labels", "probabilities"]


def check_logits(output: object, verb: str) -> Tensor:
    """Return the logits.

    Raises:
        TypeError: the output has none.
    """
    if isinstance(output, Tensor) and output.dim() >= 2 and output.is_floating_point():
        return output
    got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise TypeError(
        f"{verb}: the model must give logits (N, classes) or (N, classes, ...), got {got}. Wrap it in a module whose "
        "forward gives these."
    )


def probabilities(logits: Tensor) -> Tensor:
    """Return predictions of shape (N, classes, places), float32; one place if they are not dense."""
    predicted = logits.float().softmax(1)
    return predicted.flatten(2) if logits.dim() > 2 else predicted[:, :, None]


def image_labels(labels: Tensor) -> Tensor:
    """Return one label for each image; for dense labels (N, ...) the most frequent one of its places."""
    return labels if labels.dim() == 1 else labels.flatten(1).mode(1).values


def hits(logits: Tensor, labels: Tensor) -> float:
    """Return the share of right predictions; places whose label is not a class, such as ignored ones, do not count."""
    known = (labels >= 0) & (labels < logits.shape[1])
    return float((logits.argmax(1) == labels)[known].double().mean())
