"""What is measured on training images before a network meets a stream."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from steadynorm.adaptation.evidence import Votes, deviation, information
from steadynorm.adaptation.normalizing import normalizing_by, stored_moments
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import sample_noise

__all__ = ["Calibration", "calibrate"]

DISCOUNT = 0.2
"""Accuracy that a shift as large as that of a batch of one class costs, beyond what confidence tells."""
CLASS_COUNTS = (1, 2, 3, 5)
"""Classes in a trial batch, besides all of them."""
REPEATS = 16
"""Trial batches for each number of classes."""
FLOOR_DEVIATIONS, MARGIN_DEVIATIONS = 3.0, 1.0
"""Standard deviations above what two classes, and above what clean batches of all classes, come to."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a network does on images like those it was trained on, and on batches of some classes alone.

    With I the information of a window's predictions by batch statistics, κ the mean confidence by stored ones and s
    the shift:

        accuracy by batch statistics ≈ intercept + slope·I
        accuracy by stored statistics ≈ κ − DISCOUNT·s
        gain = intercept + slope·I − (κ − DISCOUNT·s)
    """

    images: int
    """In a trial batch, and in a window that is judged."""
    noise: dict[str, float]
    """Layer -> variance of one image's mean, relative to that of its values, as gated layers measure it."""
    usual_deviation: dict[str, float]
    """Layer -> deviation of a batch of one class, averaged; layers in which nothing deviates are not there."""
    slope: float
    """Accuracy for each nat of information."""
    intercept: float
    """Accuracy at no information, on the line that fits all trials; no accuracy itself."""
    floor: float
    """Information above which a batch has more than two classes."""
    margin: float
    """Gain above which there is more to it than on clean batches of all classes, where there is none."""

    def shift(self, deviations: Mapping[str, float]) -> float:
        """Give s, the median over layers of deviation / usual deviation: of most layers, not of the most."""
        ratios = [deviations[name] / usual for name, usual in self.usual_deviation.items()]
        return statistics.median(ratios) if ratios else 0.0

    def gain(self, votes: Votes, deviations: Mapping[str, float]) -> float:
        """Estimate how much more accurate batch statistics are than stored ones."""
        confidence = votes.confidence / votes.images
        return self.intercept + self.slope * information(votes) - (confidence - DISCOUNT * self.shift(deviations))


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What a batch of some classes has come to."""

    classes: int
    votes: Votes
    accuracy: float
    deviations: dict[str, float] = field(default_factory=dict)

    @property
    def information(self) -> float:
        return information(self.votes)


def calibrate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, images: int = 100, seed: int = 0
) -> Calibration:
    """Measure a network on training images, in evaluation; it stays as it is.

    The images are mirrored, left and right: a network that was trained without mirroring has not memorised those.

    Args:
        model: the network.
        batches: pairs of images (N, C, ...) and labels (N,), of at least two images each; about 2,000 images are
            enough. Kept in memory together.
        images: in a window that is judged, and in the trial batches, which are drawn from those given; with
            replacement where a class has too few.
        seed: decides the trial batches.

    Raises:
        ValueError: images of fewer than three classes; a batch with more or fewer labels than images; a batch norm
            without running estimates; outputs that are not finite.
    """
    kept = [(_mirrored(x), labels) for x, labels in batches]
    for x, labels in kept:
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"calibrate: a batch must have one label for each image, got labels of shape {tuple(labels.shape)} for "
                f"images of shape {tuple(x.shape)}."
            )
    classes = torch.unique(torch.cat([labels for _, labels in kept])) if kept else torch.empty(0)
    if len(classes) < 3:
        raise ValueError(
            f"calibrate: there must be images of at least 3 classes, got {len(classes)}. Give some 2,000 training "
            "images in random order."
        )
    noise, outputs = _by_stored(model, kept)
    _check_finite(outputs, "by its stored statistics")
    x, labels = torch.cat([x for x, _ in kept]), torch.cat([labels for _, labels in kept])
    chosen = list(_trial_batches(labels, images, torch.Generator().manual_seed(seed)))
    trials = [_try(model, x[rows], labels[rows], outputs[rows], count) for count, rows in chosen]
    return _fit(trials, images, noise)


def _check_finite(outputs: Tensor, how: str) -> None:
    bad = int((~outputs.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise ValueError(
            f"calibrate: the model's outputs {how} must be finite, but those of {bad} of {len(outputs)} images are "
            "not. Check the images, the weights and the running statistics."
        )


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(-1) if x.dim() == 4 else x


def _by_stored(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[dict[str, float], Tensor]:
    """Give the noise of a sample in each layer, and the outputs."""
    seen: dict[str, list[float]] = {}

    def choose(name: str, input: Tensor, stored: Moments) -> Moments:
        seen.setdefault(name, []).append(float(sample_noise(input, measure(input))))
        return stored

    with normalizing_by(model, choose):
        outputs = torch.cat([model(x) for x, _ in batches])
    return {name: sum(each) / len(each) for name, each in seen.items()}, outputs


def _trial_batches(labels: Tensor, images: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """Give the number of classes and the rows of each trial batch."""
    classes = torch.unique(labels).cpu()
    for count in (*(few for few in CLASS_COUNTS if few < len(classes)), len(classes)):
        for _ in range(REPEATS):
            some = classes[torch.randperm(len(classes), generator=generator)[:count]]
            rows = torch.isin(labels.cpu(), some).nonzero()[:, 0]
            order = torch.randperm(len(rows), generator=generator)
            if len(rows) < images:
                order = torch.randint(len(rows), (images,), generator=generator)
            yield count, rows[order[:images]].to(labels.device)


def _try(model: nn.Module, x: Tensor, labels: Tensor, stored: Tensor, classes: int) -> _Trial:
    """Predict a batch by its own moments."""
    moments: dict[str, Moments] = {}

    def choose(name: str, input: Tensor, stored: Moments) -> Moments:
        moments[name] = measure(input)
        return moments[name]

    with normalizing_by(model, choose):
        batch = model(x)
    _check_finite(batch, "by batch statistics")
    accuracy = float((batch.argmax(1) == labels).double().mean())
    deviations = deviation(moments, stored_moments(model))
    return _Trial(classes=classes, votes=Votes.of(stored, batch), accuracy=accuracy, deviations=deviations)


def _fit(trials: Sequence[_Trial], images: int, noise: dict[str, float]) -> Calibration:
    slope, intercept = statistics.linear_regression(
        [each.information for each in trials], [each.accuracy for each in trials]
    )
    of = {each.classes: [other for other in trials if other.classes == each.classes] for each in trials}
    usual = {name: statistics.fmean(each.deviations[name] for each in of[1]) for name in of[1][0].deviations}
    calibration = Calibration(
        images=images,
        noise=noise,
        usual_deviation={name: value for name, value in usual.items() if value > 0},
        slope=slope,
        intercept=intercept,
        floor=_above([each.information for each in of[2]], FLOOR_DEVIATIONS),
        margin=0.0,
    )
    gains = [calibration.gain(each.votes, each.deviations) for each in of[max(of)]]
    return replace(calibration, margin=_above(gains, MARGIN_DEVIATIONS))


def _above(values: Sequence[float], deviations: float) -> float:
    return statistics.fmean(values) + deviations * statistics.stdev(values)
