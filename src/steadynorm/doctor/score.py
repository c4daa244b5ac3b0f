"""How good a model's output is, as one number for a batch, of which less is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Measure", "Score", "accuracy", "labels_of", "logits_of", "score_from"]

Measure = Callable[[Any, Any], "float | Tensor"]
"""Output of the model and the batch as the loader gives it -> one number, the mean over the batch's samples."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number for each batch.

    Args:
        name: what it is, for reports: the name of the function that was given, ``loss`` or ``metric`` where that has
            none, or ``cross-entropy``.
        sign: 1 where less is better, −1 where more is.
        measure: gives it.
    """

    name: str
    sign: int
    measure: Measure

    def __call__(self, output: Any, batch: Any) -> float:  # noqa: ANN401 (as the model and the loader give them)
        """Give the number, of which less is better; NaN where it is not finite."""
        return self.sign * float(self.measure(output, batch))


def score_from(loss: Measure | None, metric: Measure | None, output: Any, batch: Any) -> Score | None:  # noqa: ANN401
    """Give the score that was asked for, or one that output and batch offer.

    That is cross-entropy where they look like a classifier's, else the loss that the model gives itself.

    Args:
        loss: of which less is better; taken before ``metric``.
        metric: of which more is better.
        output: of the model on ``batch``.
        batch: with the labels as its second item, shape (N,), integers; or under ``labels``.

    Returns:
        the score, None where nothing is known to score by.
    """
    if loss is not None:
        return Score(name=_name(loss, "loss"), sign=1, measure=loss)
    if metric is not None:
        return Score(name=_name(metric, "metric"), sign=-1, measure=metric)
    if _is_classifier(output, batch):
        return Score(name="cross-entropy", sign=1, measure=_cross_entropy)
    return None if _loss_in(output) is None else Score(name="loss", sign=1, measure=_own_loss)


def accuracy(output: Any, batch: Any) -> float:  # noqa: ANN401 (as the model and the loader give them)
    """Give the share of a batch's samples whose largest logit is their label's, for ``metric``."""
    logits, labels = logits_of(output), labels_of(batch)
    if logits is None or labels is None:
        raise TypeError(
            "accuracy: output must be logits of shape (N, K) and the batch's second item, or labels, integers of "
            "shape (N,). Give a metric of your own."
        )
    return float((logits.argmax(dim=1) == labels.to(logits.device)).double().mean())


def labels_of(batch: Any) -> Tensor | None:  # noqa: ANN401 (as the loader gives it)
    """Give the labels of a batch of a classifier, shape (N,); None where there are none."""
    found = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        found = batch[1]
    fits = isinstance(found, Tensor) and found.dim() == 1 and found.dtype in (torch.int64, torch.int32)
    return found if fits else None


def logits_of(output: Any) -> Tensor | None:  # noqa: ANN401 (as the model gives it)
    """Give the logits of a classifier's output, shape (N, K); None where it gives none."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) and found.dim() == 2 and found.is_floating_point() else None


def _loss_in(output: Any) -> Tensor | None:  # noqa: ANN401 (as the model gives it)
    """Give the loss in a model's output, as Hugging Face's have it where labels are given; None where there is none."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return found if isinstance(found, Tensor) and found.numel() == 1 and found.is_floating_point() else None


def _own_loss(output: Any, batch: Any) -> Tensor:  # noqa: ANN401 (as they come)
    found = _loss_in(output)
    assert found is not None
    return found


def _name(measure: Measure, usual: str) -> str:
    """Give the name of a function; the usual one of a lambda or an object."""
    name = str(getattr(measure, "__name__", ""))
    return name.replace("_", " ").strip() if name.isidentifier() else usual


def _is_classifier(output: Any, batch: Any) -> bool:  # noqa: ANN401 (as they come)
    labels, logits = labels_of(batch), logits_of(output)
    if labels is None or logits is None or len(labels) != len(logits) or len(labels) == 0:
        return False
    return bool(labels.min() >= 0) and bool(labels.max() < logits.shape[1])


def _cross_entropy(output: Any, batch: Any) -> Tensor:  # noqa: ANN401 (as they come)
    logits, labels = logits_of(output), labels_of(batch)
    assert logits is not None and labels is not None
    return functional.cross_entropy(logits.double(), labels.to(logits.device).long())
