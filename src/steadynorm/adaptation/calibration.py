"""What is measured on training images before a network meets a stream."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from steadynorm.adaptation.class_moments import ClassMoments, ClassSums, Profiles
from steadynorm.adaptation.evidence import Votes, deviation, information
from steadynorm.adaptation.normalizing import normalizing_by, stored_moments
from steadynorm.adaptation.outputs import check_logits, hits, image_labels
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import sample_noise

__all__ = ["Calibration", "calibrate"]

DISCOUNT = 0.2
"""Accuracy that a shift as large as that of a batch of one class costs, beyond what confidence tells."""
CLASS_COUNTS = (1, 2, 3, 5)
"""Classes in a trial batch, besides all of them."""
REPEATS = 16
"""Trial batches for each number of classes."""
FLOOR_DEVIATIONS, LEAST_DEVIATIONS, MARGIN_DEVIATIONS = 3.0, 2.0, 3.0
"""Standard deviations above what two classes come to, but below what all do; and above clean batches' gain."""
PROFILES, MIXED = 32, 4
"""Classes at most of which a profile is taken, and windows of all classes beside them."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a network does on images like those it was trained on, and on batches of some classes alone.

    With I the information of a window's predictions by batch statistics, k its concentration on a class, κ the mean
    confidence by stored ones and s the shift:

        accuracy by batch statistics ≈ intercept + slope·I + bend·k
        accuracy by stored statistics ≈ κ − DISCOUNT·s
        gain = intercept + slope·I + bend·k − (κ − DISCOUNT·s)
    """

    images: int
    """In a trial batch, and in a window that is judged."""
    noise: dict[str, float]
    """Layer -> variance of one image's mean, relative to that of its values, as gated layers measure it."""
    usual_deviation: dict[str, float]
    """Layer -> deviation of a batch of one class, averaged; layers in which nothing deviates are not there."""
    line: tuple[float, float]
    """Intercept and slope of accuracy on information alone."""
    slope: float
    """Accuracy for each nat of information."""
    bend: float
    """Accuracy for a concentration of 1."""
    intercept: float
    """Accuracy without either, on the plane that fits all trials; no accuracy itself."""
    floor: float
    """Accuracy by batch statistics above which a batch has more than one class; than two where the network has a single
    norm, so that there is no concentration."""
    sure: float
    """And more than two."""
    few: float
    """Concentration of a batch of two classes."""
    alone: float
    """Concentration half way from two classes to one."""
    even: float
    """Gain of clean batches of all classes, where there is none: what the estimate is off by."""
    margin: float
    """Gain above which there is more to it than on clean batches of all classes, where there is none."""
    classes: ClassMoments
    """What each layer's input is for each class."""
    profiles: Profiles
    """By which concentration is measured."""

    def shift(self, deviations: Mapping[str, float]) -> float:
        """Give s, the median over layers of deviation / usual deviation: of most layers, not of the most."""
        ratios = [deviations[name] / usual for name, usual in self.usual_deviation.items()]
        return statistics.median(ratios) if ratios else 0.0

    def accuracy(self, votes: Votes, concentration: float) -> float:
        """Estimate how accurate batch statistics are in a window, where nothing has shifted."""
        return self._plane(information(votes), concentration)

    def _plane(self, told: float, concentration: float) -> float:
        return self.intercept + self.slope * told + self.bend * concentration

    def gain(self, votes: Votes, concentration: float, shift: float) -> float:
        """Estimate how much more accurate batch statistics are than stored ones."""
        told = information(votes)
        accuracy = max(self._plane(told, concentration), self.line[0] + self.line[1] * told)
        return accuracy - (votes.confidence / votes.images - DISCOUNT * shift)


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What a batch of some classes has come to."""

    classes: int
    votes: Votes
    accuracy: float
    concentration: float = 0.0
    deviations: dict[str, float] = field(default_factory=dict)

    @property
    def information(self) -> float:
        return information(self.votes)


def calibrate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    images: int = 100,
    seed: int = 0,
    mirrors: bool = True,
    may_guess: bool = False,
) -> Calibration:
    """Measure a network on clean images, in evaluation; it stays as it is.

    Args:
        model: the network.
        batches: pairs of images (N, C, ...) and labels (N,), or (N, ...) for dense outputs, of at least two images
            each; about 1,000 images are enough. Kept in memory together.
        images: in a window that is judged, and in the trial batches, which are drawn from those given; with
            replacement where a class has too few.
        seed: decides the trial batches.
        mirrors: whether images are mirrored, left and right. A network that was trained without mirroring has not
            memorised its training images mirrored; give False for images that it was not trained on.
        may_guess: whether outputs may be right no more often than the commonest label, as those of a network that has
            not learnt.

    Raises:
        ValueError: images of fewer than three classes; a batch with more or fewer labels than images; a batch norm
            without running estimates; outputs that are not finite, or right no more often than the commonest label.
    """
    kept = [_mirrored(x, labels) if mirrors else (x, labels) for x, labels in batches]
    for x, labels in kept:
        if len(labels) != len(x):
            raise ValueError(
                f"calibrate: a batch must have one label for each image, got labels of shape {tuple(labels.shape)} for "
                f"images of shape {tuple(x.shape)}."
            )
    labels = torch.cat([labels for _, labels in kept]) if kept else torch.empty(0)
    classes = image_labels(labels)
    if len(torch.unique(classes)) < 3:
        raise ValueError(
            f"calibrate: there must be images of at least 3 classes, got {len(torch.unique(classes))}. Give some 1,000 "
            "images in random order."
        )
    noise, moments, outputs = _by_stored(model, kept)
    _check_finite(outputs, "by its stored statistics")
    _check_logits(outputs, labels)
    if not may_guess:
        _check_right(outputs, labels)
    x, generator = torch.cat([x for x, _ in kept]), torch.Generator().manual_seed(seed)
    chosen = list(_trial_batches(classes, images, generator))
    profiles = _profiles(model, x, classes, images, generator)
    trials = [_try(model, x[rows], labels[rows], outputs[rows], count, profiles) for count, rows in chosen]
    return _fit(trials, images, noise, moments, profiles)


def _check_logits(outputs: Tensor, labels: Tensor) -> None:
    if outputs.dim() != labels.dim() + 1 or outputs.shape[2:] != labels.shape[1:]:
        raise ValueError(
            f"calibrate: the model must give logits (N, classes) for labels (N,), or (N, classes, ...) for labels (N, "
            f"...), got outputs {tuple(outputs.shape)} for labels {tuple(labels.shape)}. Wrap it in a module that does."
        )


def _check_right(outputs: Tensor, labels: Tensor) -> None:
    """Refuse outputs that say nothing of the labels, such as embeddings."""
    most = float(torch.unique(labels, return_counts=True)[1].max()) / labels.numel()
    right = hits(outputs, labels)
    if right <= most:
        raise ValueError(
            f"calibrate: the model must be right more often than its commonest label is, {most:.0%}, got {right:.0%}. "
            "If its outputs are embeddings, wrap it in a module that gives logits, such as less the squared distances "
            "to the classes' mean embeddings."
        )


def _check_finite(outputs: Tensor, how: str) -> None:
    bad = int((~outputs.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise ValueError(
            f"calibrate: the model's outputs {how} must be finite, but those of {bad} of {len(outputs)} images are "
            "not. Check the images, the weights and the running statistics."
        )


def _mirrored(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror images (N, C, H, W), and their dense labels."""
    return (x.flip(-1), labels.flip(-1) if labels.dim() == 3 else labels) if x.dim() == 4 else (x, labels)


def _by_stored(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]
) -> tuple[dict[str, float], ClassMoments, Tensor]:
    """Give the noise of a sample in each layer, its moments for each class, and the outputs."""
    seen: dict[str, list[float]] = {}
    sums, outputs = ClassSums(), []
    shown: Tensor = torch.empty(0)

    def choose(name: str, input: Tensor, stored: Moments) -> Moments:
        seen.setdefault(name, []).append(float(sample_noise(input, measure(input))))
        sums.add(name, input, shown)
        return stored

    with normalizing_by(model, choose):
        for x, labels in batches:
            shown = image_labels(labels)
            outputs.append(check_logits(model(x), "calibrate"))
    noise = {name: sum(each) / len(each) for name, each in seen.items()}
    return noise, sums.finish(outputs[0].shape[1]), torch.cat(outputs)


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


def _profiles(model: nn.Module, x: Tensor, labels: Tensor, images: int, generator: torch.Generator) -> Profiles:
    """Measure windows of all classes, and one of each class or of some classes."""

    def window(rows: Tensor) -> dict[str, Moments]:
        return _by_batch(model, x[rows[torch.randperm(len(rows), generator=generator)[:images].to(rows.device)]])[1]

    classes = torch.unique(labels)
    some = classes[torch.randperm(len(classes), generator=generator)[:PROFILES].to(classes.device)]
    mixed = [window(torch.arange(len(x), device=x.device)) for _ in range(MIXED)]
    return Profiles.measure(mixed, [window((labels == label).nonzero()[:, 0]) for label in some])


def _by_batch(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Moments]]:
    """Give the output by the batch's own moments, and these."""
    moments: dict[str, Moments] = {}

    def choose(name: str, input: Tensor, stored: Moments) -> Moments:
        moments[name] = measure(input)
        return moments[name]

    with normalizing_by(model, choose):
        return model(x), moments


def _try(model: nn.Module, x: Tensor, labels: Tensor, stored: Tensor, classes: int, profiles: Profiles) -> _Trial:
    """Predict a batch by its own moments."""
    batch, moments = _by_batch(model, x)
    _check_finite(batch, "by batch statistics")
    return _Trial(
        classes=classes,
        votes=Votes.of(stored, batch),
        accuracy=hits(batch, labels),
        concentration=profiles.concentration(moments),
        deviations=deviation(moments, stored_moments(model)),
    )


def _fit(
    trials: Sequence[_Trial], images: int, noise: dict[str, float], classes: ClassMoments, profiles: Profiles
) -> Calibration:
    intercept, slope, bend = _plane(trials)
    line = statistics.linear_regression([each.information for each in trials], [each.accuracy for each in trials])
    of = {each.classes: [other for other in trials if other.classes == each.classes] for each in trials}
    usual = {name: statistics.fmean(each.deviations[name] for each in of[1]) for name in of[1][0].deviations}
    few = statistics.fmean(each.concentration for each in of[2])
    calibration = Calibration(
        images=images,
        noise=noise,
        usual_deviation={name: value for name, value in usual.items() if value > 0},
        line=(line[1], line[0]),
        slope=slope,
        bend=bend,
        intercept=intercept,
        floor=0.0,
        sure=0.0,
        few=few,
        alone=(few + statistics.fmean(each.concentration for each in of[1])) / 2,
        even=0.0,
        margin=0.0,
        classes=classes,
        profiles=profiles,
    )

    def accuracies(classes: int) -> list[float]:
        return [calibration._plane(each.information, each.concentration) for each in of[classes]]

    every = accuracies(max(of))
    least = _above(every, -LEAST_DEVIATIONS)
    floor, sure = (min(_above(accuracies(few), FLOOR_DEVIATIONS), least) for few in (1 if profiles.mixed else 2, 2))
    gains = [
        calibration.gain(each.votes, each.concentration, calibration.shift(each.deviations)) for each in of[max(of)]
    ]
    return replace(
        calibration, floor=floor, sure=sure, even=statistics.fmean(gains), margin=_above(gains, MARGIN_DEVIATIONS)
    )


def _plane(trials: Sequence[_Trial]) -> tuple[float, float, float]:
    """Fit accuracy by information and concentration."""
    seen = torch.tensor([[1.0, each.information, each.concentration] for each in trials], dtype=torch.float64)
    accuracy = torch.tensor([each.accuracy for each in trials], dtype=torch.float64)
    intercept, slope, bend = (torch.linalg.pinv(seen) @ accuracy).tolist()
    return intercept, slope, bend


def _above(values: Sequence[float], deviations: float) -> float:
    return statistics.fmean(values) + deviations * statistics.stdev(values)
