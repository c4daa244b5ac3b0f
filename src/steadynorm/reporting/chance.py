"""Chance level: the accuracy of guessing, and a test of which networks are better."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from steadynorm.reporting.records import Record

__all__ = ["Chance", "chance_in_training", "chance_of", "entropy", "loss_of_guessing", "most_frequent"]

RISK = 1e-3
"""Significance level: probability that guessing passes for better than guessing."""


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Chance level on a set of images."""

    share: float
    """Its accuracy in [0, 1]: the share of the most frequent class."""
    images: int
    """Number of images that accuracies are measured on."""

    @property
    def is_beatable(self) -> bool:
        """Whether a network that is always right would surely be better than guessing: not on few, unequal images."""
        return self.is_beaten(1.0)

    def is_beaten(self, accuracy: float) -> bool:
        """Whether a network of this accuracy is surely better than guessing.

        It is where guessing would be right on as many of the n images with a probability of at most 0.001, by the
        bound  exp(-n KL(a || p)),  KL(a || p) = a ln(a / p) + (1 - a) ln((1 - a) / (1 - p)),  on the tail of the
        binomial distribution. Of several seeds each has to be.

        Source: Chernoff 1952; Hoeffding 1963, theorem 1.
        """
        if not accuracy > self.share:
            return False
        return self.images * _divergence(accuracy, self.share) >= -math.log(RISK)


def chance_of(record: Record) -> Chance:
    """Compute the chance level on the validation images; older records are assumed to have equal classes.

    An export's images are those that it was compared on, of ten classes.
    """
    if record.experiment == "export":
        share = record.resolved.get("chance", 0.1)
        return Chance(share=float(share), images=int(record.resolved["images"]))
    classes = record.resolved["classes"]
    share = record.resolved.get("chance", 1 / (classes if isinstance(classes, int) else len(classes)))
    return Chance(share=float(share), images=int(record.resolved["validation_images"]))


def chance_in_training(record: Record) -> Chance:
    """Compute the chance level on the training images."""
    share = record.resolved.get("train_chance", chance_of(record).share)
    return Chance(share=float(share), images=int(record.resolved["train_images"]))


def loss_of_guessing(record: Record) -> float:
    """Return the mean cross-entropy, in nats, of a network that knows only the class frequencies of training images.

    Records of earlier versions are taken to have equal classes.
    """
    classes = record.resolved["classes"]
    count = classes if isinstance(classes, int) else len(classes)
    return float(record.resolved.get("train_entropy", math.log(count)))


def entropy(labels: Tensor) -> float:
    """Return the entropy in nats of labels of shape (N,)."""
    shares: list[float] = (labels.bincount() / len(labels)).tolist()
    return -math.fsum(share * math.log(share) for share in shares if share > 0)


def most_frequent(labels: Tensor) -> float:
    """Return the fraction of the most frequent class in labels of shape (N,)."""
    return (labels.bincount().max() / len(labels)).item()


def _divergence(a: float, p: float) -> float:
    """Return the Kullback-Leibler divergence of two Bernoulli distributions, in nats."""
    return sum(x * math.log(x / y) for x, y in ((a, p), (1 - a, 1 - p)) if x > 0)
