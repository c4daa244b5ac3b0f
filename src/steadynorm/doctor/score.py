"""Score a model's output with one number for each batch; less is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Measure", "Score", "accuracy", "labels_of", "logits_of", "mixes_labels", "score_from"]

_INTEGERS = (torch.int64, torch.int32, torch.uint8)
_LEFT_OUT = (255, -1, -100)
"""Labels of pixels that losses ignore: in Pascal VOC and Cityscapes, in some loaders, in torch."""
_WHOLE = 0.999
"""Label probability from which a sample counts as unmixed."""

Measure = Callable[[Any, Any], "float | Tensor"]
"""(output, batch) -> a number, averaged over the samples of the batch."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score of a batch.

    Args:
        name: name for reports: that of the given function, ``loss`` or ``metric`` if it has none, or
            ``cross-entropy``.
        sign: 1 if less is better, −1 if more is.
        measure: computes the number.
    """

    name: str
    sign: int
    measure: Measure

    def __call__(self, output: Any, batch: Any) -> float:  # noqa: ANN401 (as the model and the loader give them)
        """Return the signed number, for which less is better; NaN if it is not finite."""
        return self.sign * float(self.measure(output, batch))


def score_from(loss: Measure | None, metric: Measure | None, output: Any, batch: Any) -> Score | None:  # noqa: ANN401
    """Build the requested score, or a default from output and batch.

    The default is cross-entropy if they look like a classifier's (of images or pixels), else the output's own loss.

    Args:
        loss: less is better; takes precedence over ``metric``.
        metric: more is better.
        output: the model's output on ``batch``.
        batch: labels are its second item or under ``labels``: integers, shape (N,) or that of the logits without its
            second dimension, where 255, −1 and −100 mark ignored pixels unless they are classes; or class
            probabilities, shape (N, K).

    Returns:
        the score; None if there is nothing to score by.
    """
    if loss is not None:
        return Score(name=_name(loss, "loss"), sign=1, measure=loss)
    if metric is not None:
        return Score(name=_name(metric, "metric"), sign=-1, measure=metric)
    if _as_classifier(output, batch) is not None:
        return Score(name="cross-entropy", sign=1, measure=_cross_entropy)
    return None if _loss_in(output) is None else Score(name="loss", sign=1, measure=_own_loss)


def accuracy(output: Any, batch: Any) -> float:  # noqa: ANN401 (as the model and the loader give them)
    """Return the fraction of a batch's samples whose largest logit is their label's; use it as ``metric``.

    Args:
        output: logits of shape (N, K), or a model output that has them.
        batch: as the loader yields it, with integer labels of shape (N,) as its second item or under ``labels``.

    Returns:
        accuracy in [0, 1].

    Raises:
        TypeError: logits or labels were not found.

    >>> accuracy(torch.eye(2), (None, torch.tensor([0, 0])))
    0.5
    """
    logits, labels = logits_of(output), labels_of(batch)
    if logits is None or labels is None:
        raise TypeError(
            "accuracy: output must be logits of shape (N, K) and the batch's second item, or labels, integers of "
            "shape (N,). Give a metric of your own."
        )
    return float((logits.argmax(dim=1) == labels.to(logits.device)).double().mean())


def labels_of(batch: Any) -> Tensor | None:  # noqa: ANN401 (as the loader gives it)
    """Return the labels of a classifier's batch, shape (N,); None without labels."""
    found = _given(batch)
    return found if found is not None and found.dim() == 1 and found.dtype in _INTEGERS else None


def mixes_labels(batch: Any) -> bool:  # noqa: ANN401 (as the loader gives it)
    """Return whether a batch has class probabilities that mix two classes in some samples, as mixup does.

    With three classes or more, a probability that all classes have in common is label smoothing.
    """
    found = _given(batch)
    if found is None or not _are_shares(found):
        return False
    own = found - found.amin(1, keepdim=True) if found.shape[1] > 2 else found
    return bool((own.amax(1) < _WHOLE * own.sum(1)).any())


def _given(batch: Any) -> Tensor | None:  # noqa: ANN401 (as the loader gives it)
    found = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        found = batch[1]
    return found if isinstance(found, Tensor) else None


def _are_shares(found: Tensor) -> bool:
    """Return whether a tensor holds class probabilities for each sample, shape (N, K)."""
    if found.dim() != 2 or not found.is_floating_point() or found.shape[1] < 2:
        return False
    return bool((found >= 0).all()) and bool(((found.sum(1) - 1).abs() < 1e-3).all())


def logits_of(output: Any) -> Tensor | None:  # noqa: ANN401 (as the model gives it)
    """Return the logits in a classifier's output, shape (N, K); None without logits."""
    found = _scores_in(output)
    return found if found is not None and found.dim() == 2 else None


def _scores_in(output: Any) -> Tensor | None:  # noqa: ANN401 (as the model gives it)
    """Return an output, its ``logits`` or its ``out`` (torchvision's segmentation models), shape (N, K, ...)."""
    found = getattr(output, "logits", output)
    found = found.get("logits", found.get("out")) if isinstance(found, Mapping) else found
    fits = isinstance(found, Tensor) and found.dim() >= 2 and found.is_floating_point()
    return found if fits else None


def _loss_in(output: Any) -> Tensor | None:  # noqa: ANN401 (as the model gives it)
    """Return the loss in a model's output (Hugging Face models given labels); None without one."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return found if isinstance(found, Tensor) and found.numel() == 1 and found.is_floating_point() else None


def _own_loss(output: Any, batch: Any) -> Tensor:  # noqa: ANN401 (as they come)
    found = _loss_in(output)
    assert found is not None
    return found


def _name(measure: Measure, usual: str) -> str:
    """Return a function's name; the usual name for a lambda or an object."""
    name = str(getattr(measure, "__name__", ""))
    return name.replace("_", " ").strip() if name.isidentifier() else usual


def _as_classifier(output: Any, batch: Any) -> tuple[Tensor, Tensor] | None:  # noqa: ANN401 (as they come)
    """Return logits and targets for torch's cross-entropy; None if they are not a classifier's."""
    logits, found = _scores_in(output), _given(batch)
    if logits is None or found is None or found.numel() == 0:
        return None
    found = found.to(logits.device)
    if _are_shares(found):
        return (logits.double(), found.double()) if found.shape == logits.shape else None
    if found.dtype not in _INTEGERS or found.shape != logits.shape[:1] + logits.shape[2:]:
        return None
    counted = torch.ones_like(found, dtype=torch.bool) if found.dim() == 1 else ~_is_left_out(found, logits.shape[1])
    known = found[counted]
    if known.numel() == 0 or not (bool(known.min() >= 0) and bool(known.max() < logits.shape[1])):
        return None
    return logits.double(), found.long().masked_fill(~counted, -100)


def _is_left_out(labels: Tensor, classes: int) -> Tensor:
    left_out = [each for each in _LEFT_OUT if not 0 <= each < classes]
    return torch.isin(labels, torch.tensor(left_out, device=labels.device))


def _cross_entropy(output: Any, batch: Any) -> Tensor:  # noqa: ANN401 (as they come)
    found = _as_classifier(output, batch)
    return torch.tensor(math.nan) if found is None else functional.cross_entropy(*found)
