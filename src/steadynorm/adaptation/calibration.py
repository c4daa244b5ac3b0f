"""Calibration of a network on clean images, and on synthetic shifts of them, before it meets a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from steadynorm.adaptation.class_moments import ClassMoments, ClassSums, Steps
from steadynorm.adaptation.evidence import Seen, Votes, features, read_row
from steadynorm.adaptation.normalizing import normalizing_by, stored_moments
from steadynorm.adaptation.outputs import check_logits, hits, image_labels
from steadynorm.adaptation.regression import Regression, left_out
from steadynorm.adaptation.shifts import SHIFTS, Shift, shifts_of
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import sample_noise
from steadynorm.surgery.batches import evaluating

__all__ = ["Calibration", "calibrate"]

CLASS_COUNTS = (1, 2, 3, 5)
"""Numbers of classes in a trial window, besides all of them."""
FEW = 3
"""Largest number of classes, and at most half of all, that is too few for batch statistics."""
STRENGTHS = (0.3, 0.6, 0.9)
"""Strengths of the shifts; a random number up to 0.1 is added."""
CLEAN_REPEATS, REPEATS = 12, 4
"""Trial windows for each number of classes: clean ones, and ones for each shift and strength."""
MIXED_RIDGE, GAIN_RIDGE = 0.3, 1.0
LEAST_DEVIATIONS, MARGIN_DEVIATIONS = 1.5, 0.5
"""Least distance of a window above those of few classes, in standard deviations of left-out families; and the margin,
in root mean square errors of the gain."""
LEAST_RISK = 1e-9
NORMAL = NormalDist()
LEAST_RIGHT = 0.5
"""Share of the clean accuracy that predictions must reach to show an order."""
STEPS = 32
"""Largest number of classes for which a window is measured, to learn what a change of class does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What a :class:`Gate` knows of a network, measured on clean images and on synthetic shifts of them."""

    images: int
    """Images in a window."""
    noise: dict[str, float]
    """Layer -> variance of one image's mean, relative to the variance of its values; as gated layers measure it."""
    mixed: Regression
    """Window features -> 1 if the window holds all classes, −1 if it holds few."""
    few: float
    """Mean of ``mixed`` over windows of few classes."""
    spread: float
    """Standard deviation of ``mixed`` over windows of few classes."""
    gain: Regression
    """Window features -> accuracy with batch statistics minus accuracy with running statistics."""
    margin: float
    """Threshold of ``gain`` above which batch statistics are better."""
    right: Regression
    """Window features -> accuracy with running statistics."""
    least: float
    """Threshold of ``right`` below which the gate follows no order of the classes."""
    classes: ClassMoments
    """Moments of each layer's input for each class."""
    steps: Steps
    """Distances between classes at each layer, to distinguish a shift of the images from a change of class."""

    def limit(self, risk: float) -> float:
        """Return the threshold of ``mixed`` that windows of few classes exceed with a probability of at most ``risk``.

        few + q·spread        P(standard normal > q) = risk, q ≥ LEAST_DEVIATIONS
        """
        q = NORMAL.inv_cdf(1 - min(max(risk, LEAST_RISK), 0.5))
        return self.few + max(q, LEAST_DEVIATIONS) * self.spread

    def judge(self, told: Tensor) -> tuple[float, float, float]:
        """Return ``mixed``, ``gain`` and ``right`` for a window's features, shape (d,)."""
        mixed, gain, right = (float(fitted(told[None])) for fitted in (self.mixed, self.gain, self.right))
        return mixed, gain, right


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Result of a trial window."""

    shift: str
    classes: int
    features: Tensor
    gain: float
    right: float


def calibrate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    images: int = 100,
    seed: int = 0,
    mirrors: bool = True,
    may_guess: bool = False,
) -> Calibration:
    """Measure a network on clean images and on synthetic shifts of them.

    The model runs in evaluation mode and is left unchanged. A shifted window with non-finite outputs is skipped; inputs
    that are not floating-point are not shifted.

    Args:
        model: the network.
        batches: pairs of images (N, C, ...) and labels (N,), or labels (N, ...) for dense outputs. Each batch needs at
            least two images; about 1,000 images in all are enough. All are kept in memory.
        images: images in a window. Windows are drawn from the given images, with replacement where a class has too few.
        seed: for the choice of windows and shifts.
        mirrors: whether to mirror images left to right. Mirrored training images stand in for unseen ones if the
            network was trained without mirroring. Pass False for images that it was not trained on.
        may_guess: whether to accept a network that is right no more often than always guessing the most frequent label.

    Returns:
        the calibration for :class:`Gate`.

    Raises:
        ValueError: fewer than three classes; a batch with unequal numbers of labels and images; a batch norm without
            running statistics; outputs that are not finite, or right no more often than the most frequent label.
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
    steps = _steps(model, x, classes, images, generator)
    trials = list(_trials(model, x, labels, images, generator))
    mixed, few, spread = _fit_mixed(trials)
    gain, margin = _fit_gain(trials)
    _, told, right = _of_many(trials, "right")
    return Calibration(
        images=images,
        noise=noise,
        mixed=mixed,
        few=few,
        spread=spread,
        gain=gain,
        margin=margin,
        right=Regression.fit(told, right, torch.ones_like(right), ridge=GAIN_RIDGE),
        least=LEAST_RIGHT * hits(outputs, labels),
        classes=moments,
        steps=steps,
    )


def _check_logits(outputs: Tensor, labels: Tensor) -> None:
    if outputs.dim() != labels.dim() + 1 or outputs.shape[2:] != labels.shape[1:]:
        raise ValueError(
            f"calibrate: the model must give logits (N, classes) for labels (N,), or (N, classes, ...) for labels (N, "
            f"...), got outputs {tuple(outputs.shape)} for labels {tuple(labels.shape)}. Wrap it in a module that does."
        )


def _check_right(outputs: Tensor, labels: Tensor) -> None:
    """Refuse outputs that tell nothing about the labels, such as embeddings."""
    most = float(torch.unique(labels, return_counts=True)[1].max()) / labels.numel()
    right = hits(outputs, labels)
    if right <= most:
        raise ValueError(
            f"calibrate: the model must be right more often than its most frequent label, {most:.0%}, got {right:.0%}. "
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
    """Return the noise of a sample in each layer, the layer's moments for each class, and the outputs."""
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


def _trials(model: nn.Module, x: Tensor, labels: Tensor, images: int, generator: torch.Generator) -> Iterator[_Trial]:
    """Try windows of some and of all classes, clean and shifted; skip shifted ones that are not finite."""
    classes = image_labels(labels)
    counts = torch.unique(classes)
    families = shifts_of(x)
    unit = float(x.std()) if families else 0.0
    for count in (*(few for few in CLASS_COUNTS if few < len(counts)), len(counts)):
        for shift, strength in _plan(families):
            rows = _window(classes, count, images, generator)
            shown = x[rows]
            if shift in families:
                strength += 0.1 * float(torch.rand(1, generator=generator))
                shown = families[shift](shown, strength, unit, generator)
            trial = _try(model, shown, labels[rows], shift, count)
            if trial is not None:
                yield trial


def _plan(families: Mapping[str, Shift]) -> Iterator[tuple[str, float]]:
    """Yield shift and strength of each trial window of a number of classes; the first are ``clean``."""
    yield from (("clean", 0.0) for _ in range(CLEAN_REPEATS))
    yield from ((name, strength) for name in families for strength in STRENGTHS for _ in range(REPEATS))


def _window(classes: Tensor, count: int, images: int, generator: torch.Generator) -> Tensor:
    """Return rows of images of this number of classes."""
    every = torch.unique(classes).cpu()
    some = every[torch.randperm(len(every), generator=generator)[:count]]
    rows = torch.isin(classes.cpu(), some).nonzero()[:, 0]
    order = torch.randperm(len(rows), generator=generator)
    if len(rows) < images:
        order = torch.randint(len(rows), (images,), generator=generator)
    return rows[order[:images]].to(classes.device)


def _steps(model: nn.Module, x: Tensor, labels: Tensor, images: int, generator: torch.Generator) -> Steps:
    """Measure a window of each class or of some classes."""
    classes = torch.unique(labels)
    some = classes[torch.randperm(len(classes), generator=generator)[:STEPS].to(classes.device)]
    windows = []
    for label in some:
        rows = (labels == label).nonzero()[:, 0]
        seen = _by_batch(model, x[rows[torch.randperm(len(rows), generator=generator)[:images].to(rows.device)]])[1]
        windows.append({name: each.moments for name, each in seen.items()})
    return Steps.measure(windows)


def _by_batch(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Seen]]:
    """Return the output by batch statistics, and what each layer saw."""
    seen: dict[str, Seen] = {}

    def choose(name: str, input: Tensor, stored: Moments) -> Moments:
        seen[name] = Seen.of(read_row(input)[None])
        return seen[name].moments

    with normalizing_by(model, choose):
        return model(x), seen


def _try(model: nn.Module, x: Tensor, labels: Tensor, shift: str, classes: int) -> _Trial | None:
    """Predict a window with running and with its own statistics; None if a shifted one is not finite."""
    with evaluating(model):
        stored = model(x)
    batch, seen = _by_batch(model, x)
    told = features(Votes.of(stored, batch), seen, stored_moments(model))
    if not told.isfinite().all():
        if shift in SHIFTS:
            return None
        _check_finite(batch, "by batch statistics")
    right = hits(stored, labels)
    return _Trial(shift=shift, classes=classes, features=told, gain=hits(batch, labels) - right, right=right)


def _few(trials: Sequence[_Trial]) -> int:
    """Return the largest number of classes that is too few."""
    every = max(each.classes for each in trials)
    return max(each.classes for each in trials if each.classes <= FEW and 2 * each.classes <= every)


def _fit_mixed(trials: Sequence[_Trial]) -> tuple[Regression, float, float]:
    """Separate all classes from few, both with the same total weight; return mean and deviation of few, too."""
    few, every = _few(trials), max(each.classes for each in trials)
    chosen = [each for each in trials if each.classes in (every, *range(few + 1))]
    told, targets = _features(chosen), torch.tensor([1.0 if each.classes > few else -1.0 for each in chosen]).double()
    is_few = targets < 0
    counts = torch.where(is_few, is_few.sum(), (~is_few).sum())
    importance = len(chosen) / (2 * counts.double())
    found = left_out(told, targets, importance, ridge=MIXED_RIDGE, groups=_groups(chosen))[is_few]
    return Regression.fit(told, targets, importance, ridge=MIXED_RIDGE), float(found.mean()), float(found.std())


def _fit_gain(trials: Sequence[_Trial]) -> tuple[Regression, float]:
    """Estimate the gain of batch statistics for more than a few classes, and return the margin."""
    chosen, told, targets = _of_many(trials, "gain")
    importance = torch.ones_like(targets)
    errors = left_out(told, targets, importance, ridge=GAIN_RIDGE, groups=_groups(chosen)) - targets
    margin = MARGIN_DEVIATIONS * float(errors.square().mean().sqrt())
    return Regression.fit(told, targets, importance, ridge=GAIN_RIDGE), margin


def _of_many(trials: Sequence[_Trial], name: str) -> tuple[list[_Trial], Tensor, Tensor]:
    """Return the windows of more than a few classes, their features, and the targets."""
    few = _few(trials)
    chosen = [each for each in trials if each.classes > few]
    return chosen, _features(chosen), torch.tensor([getattr(each, name) for each in chosen]).double()


def _features(trials: Sequence[_Trial]) -> Tensor:
    return torch.stack([each.features for each in trials])


def _groups(trials: Sequence[_Trial]) -> list[str]:
    """Return the group of each trial, which is left out together: its family, or one of two halves without families."""
    families = [each.shift for each in trials]
    return families if len(set(families)) > 1 else [str(number % 2) for number in range(len(trials))]
