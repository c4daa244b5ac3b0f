import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from steadynorm.adaptation import Calibration, calibrate, calibration
from steadynorm.adaptation.calibration import (
    CLEAN_REPEATS,
    GAIN_RIDGE,
    LEAST_DEVIATIONS,
    LEAST_RIGHT,
    MARGIN_DEVIATIONS,
    MIXED_RIDGE,
    REPEATS,
    STRENGTHS,
    _by_batch,
    _fit_gain,
    _fit_mixed,
    _Trial,
    _trials,
    _try,
    _window,
)
from steadynorm.adaptation.evidence import Votes, features
from steadynorm.adaptation.normalizing import stored_moments
from steadynorm.adaptation.regression import left_out
from steadynorm.adaptation.shifts import SHIFTS
from steadynorm.statistics import measure
from steadynorm.statistics.noise import sample_noise
from tests.support.adaptation import CLASSES, blob_network, blobs, calibration_batches
from tests.support.surgery import assert_state_equal, snapshot


@cache
def calibrated() -> Calibration:
    return calibrate(blob_network(), calibration_batches(), images=60)


@torch.no_grad()
def judged(x: torch.Tensor) -> tuple[float, float, float]:
    """What a window is taken for, what batch statistics are predicted to win, and how often stored ones to be right."""
    model = blob_network()
    output, seen = _by_batch(model, x)
    return calibrated().judge(features(Votes.of(model(x), output), seen, stored_moments(model)))


@torch.no_grad()
def clean_accuracy() -> float:
    pairs = [(blob_network()(x.flip(3)).argmax(1), labels) for x, labels in calibration_batches()]
    return float(torch.cat([told == labels for told, labels in pairs]).double().mean())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trial windows, for what does not depend on their number."""
    monkeypatch.setattr(calibration, "STRENGTHS", (0.9,))
    monkeypatch.setattr(calibration, "REPEATS", 1)


@pytest.mark.parametrize(("classes", "many"), [(1, False), (2, False), (CLASSES, True)])
def test_few_classes_are_told_from_many_without_labels(classes: int, many: bool) -> None:
    assert (judged(blobs(60, classes=classes, seed=9)[0])[0] > calibrated().limit(1)) == many


def test_what_batch_statistics_win_is_predicted_under_a_shift_that_was_not_made() -> None:
    assert -0.1 < judged(blobs(60, seed=9)[0])[1] < calibrated().margin
    assert judged(blobs(60, seed=9, shifted=True)[0])[1] > 0.1


@pytest.mark.parametrize("shift", [None, "noise", "channels"])
@torch.no_grad()
def test_how_often_stored_statistics_are_right_is_predicted(shift: str | None) -> None:
    x, labels = blobs(60, seed=9)
    if shift:
        x = SHIFTS[shift](x, 0.9, float(x.std()), torch.Generator().manual_seed(1))
    right = float((blob_network()(x).argmax(1) == labels).double().mean())
    assert judged(x)[2] == pytest.approx(right, abs=0.15)


def test_predictions_tell_of_an_order_where_they_are_right_at_least_half_as_often_as_on_clean_images() -> None:
    assert LEAST_RIGHT == 0.5
    assert calibrated().least == pytest.approx(0.5 * clean_accuracy())


def trials(few: tuple[int, ...] = (1, 2, 3)) -> list[_Trial]:
    """Windows of each number of classes in three families, told by two numbers in noise."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for number in range(90):
        count = (*few, 5, 10)[number % (len(few) + 2)]
        gain = 0.05 * (number % 3) - 0.02
        told = torch.tensor([count / 3, 10 * gain]) + 0.3 * torch.randn(2, generator=generator)
        shift = ("clean", "noise", "blur")[number % 3]
        found.append(_Trial(shift=shift, classes=count, features=told.double(), gain=gain, right=0.5))
    return found


def test_few_classes_are_judged_under_a_family_that_was_left_out() -> None:
    chosen = [each for each in trials() if each.classes != 5]
    told = torch.stack([each.features for each in chosen])
    is_few = torch.tensor([each.classes <= 3 for each in chosen])
    counts = torch.where(is_few, is_few.sum(), (~is_few).sum())
    found = left_out(
        told,
        torch.where(is_few, -1.0, 1.0).double(),
        len(chosen) / (2 * counts.double()),
        ridge=MIXED_RIDGE,
        groups=[each.shift for each in chosen],
    )[is_few]
    _, few, spread = _fit_mixed(trials())
    assert few == pytest.approx(float(found.mean()))
    assert spread == pytest.approx(float(found.std()))


def test_the_limit_is_what_few_classes_exceed_no_more_often_than_is_asked_for() -> None:
    known = replace(calibrated(), few=-0.8, spread=0.4)
    assert known.limit(0.02275) == pytest.approx(-0.8 + 2 * 0.4, abs=1e-4)
    assert known.limit(0.5) == known.limit(7.0) == pytest.approx(-0.8 + LEAST_DEVIATIONS * 0.4)
    assert known.limit(1e-6) < known.limit(0.0) == known.limit(-1.0) < math.inf


def test_the_margin_is_a_share_of_the_error_on_families_that_were_left_out() -> None:
    chosen = [each for each in trials() if each.classes in (5, 10)]
    gains = torch.tensor([each.gain for each in chosen]).double()
    told, groups = torch.stack([each.features for each in chosen]), [each.shift for each in chosen]
    errors = left_out(told, gains, torch.ones_like(gains), ridge=GAIN_RIDGE, groups=groups) - gains
    assert _fit_gain(trials())[1] == pytest.approx(MARGIN_DEVIATIONS * float(errors.square().mean().sqrt()))


def test_few_and_all_classes_weigh_the_same_together() -> None:
    """So what nothing tells apart is in the middle, though there are three times as many windows of few classes."""
    same = [
        _Trial(shift=each.shift, classes=each.classes, features=torch.zeros(2).double(), gain=0, right=0)
        for each in trials()
    ]
    mixed, *_ = _fit_mixed(same)
    assert float(mixed(torch.zeros(1, 2).double())) == pytest.approx(0, abs=1e-6)


def test_of_a_few_classes_in_all_half_are_few() -> None:
    three = [each for each in trials((1, 2)) if each.classes < 5] + [
        _Trial(shift=each.shift, classes=3, features=each.features, gain=0, right=0)
        for each in trials()
        if each.classes == 10
    ]
    mixed, few, spread = _fit_mixed(three)
    of_one, of_all = (float(mixed(torch.tensor([[told, 0.0]]).double())) for told in (0.3, 3.3))
    assert of_one < few + LEAST_DEVIATIONS * spread < of_all


def test_trial_windows_are_clean_and_of_each_shift_for_each_number_of_classes() -> None:
    x, labels = blobs(120)
    found = list(_trials(blob_network(), x, labels, 20, torch.Generator().manual_seed(0)))
    for count in (1, 2, 3, 5, CLASSES):
        here = [each.shift for each in found if each.classes == count]
        assert here.count("clean") == CLEAN_REPEATS
        assert {name: here.count(name) for name in SHIFTS} == dict.fromkeys(SHIFTS, len(STRENGTHS) * REPEATS)


@pytest.mark.usefixtures("quick")
def test_noise_is_what_a_gated_layer_measures() -> None:
    batches = calibration_batches(120)
    expected = statistics.fmean(float(sample_noise(x, measure(x))) for x, _ in batches)
    assert calibrate(blob_network(), batches, images=30).noise["0"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("quick")
def test_images_are_mirrored() -> None:
    model, seen = blob_network(), []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    (first, *_) = batches = calibration_batches(120)
    calibrate(model, batches, images=30)
    assert torch.equal(seen[0], first[0].flip(3))


@pytest.mark.usefixtures("quick")
def test_a_calibration_is_repeated_by_its_seed() -> None:
    first, again, other = (
        calibrate(blob_network(), calibration_batches(120), images=30, seed=seed) for seed in (0, 0, 1)
    )
    assert (first.few, first.margin) == (again.few, again.margin)
    assert torch.equal(first.mixed.weights, again.mixed.weights)
    assert first.few != other.few


@pytest.mark.usefixtures("quick")
def test_images_are_not_mirrored_where_they_should_not_be() -> None:
    model, seen = blob_network(), []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    (first, *_) = batches = calibration_batches(120)
    calibrate(model, batches, images=30, mirrors=False)
    assert torch.equal(seen[0], first[0])


@pytest.mark.usefixtures("quick")
def test_a_model_that_is_right_no_more_often_than_the_most_frequent_label_is_refused() -> None:
    model = blob_network()
    with torch.no_grad():
        model[-1].weight.copy_(-model[-1].weight)
    with pytest.raises(ValueError, match=r"than its most frequent label, 17%, got 0%. If its outputs"):
        calibrate(model, calibration_batches(120), images=30)
    calibrate(model, calibration_batches(120), images=30, may_guess=True)


def test_outputs_of_other_shape_than_the_labels_ask_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"calibrate: the model must give logits .* got outputs \(120, 6, 6, 6\) for"):
        calibrate(blob_network()[:1], calibration_batches(120), images=30)


@pytest.mark.parametrize("images", [600, 60])
def test_a_window_has_as_many_classes_as_it_should(images: int) -> None:
    labels = torch.arange(images) % CLASSES
    for count in (1, 3, CLASSES):
        rows = _window(labels, count, 60, torch.Generator().manual_seed(0))
        assert len(rows) == 60  # some twice where a class has too few
        assert len(torch.unique(labels[rows])) == count
        assert len(torch.unique(rows)) == 60 or images == 60


@pytest.mark.usefixtures("quick")
def test_the_model_is_untouched() -> None:
    model = blob_network().train()
    before = snapshot(model)
    calibrate(model, calibration_batches(120), images=30)
    assert_state_equal(model, before)


@pytest.mark.parametrize("batches", [[], [blobs(60, classes=2)]])
def test_fewer_than_three_classes_are_refused(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with pytest.raises(ValueError, match="calibrate: there must be images of at least 3 classes, got"):
        calibrate(blob_network(), batches)


def _infinite_weight(model: torch.nn.Sequential) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(math.inf)


def _wiped(model: torch.nn.Sequential) -> None:
    next(model.buffers()).fill_(math.nan)


@pytest.mark.parametrize("break_", [_infinite_weight, _wiped])
def test_outputs_that_are_not_finite_are_refused(break_: Callable[[torch.nn.Sequential], None]) -> None:
    model = blob_network()
    break_(model)
    with pytest.raises(ValueError, match=r"outputs by its stored statistics must be finite, but those of 120 of 120"):
        calibrate(model, calibration_batches(120), images=30)


def test_an_image_that_is_not_finite_is_refused() -> None:
    batches = calibration_batches(120)
    batches[0][0][3] = math.nan
    with pytest.raises(ValueError, match=r"must be finite, but those of 1 of 120 images are not\. Check the images"):
        calibrate(blob_network(), batches, images=30)


def test_outputs_that_are_not_finite_are_refused_on_clean_images_and_left_out_on_shifted_ones() -> None:
    model, (x, labels) = blob_network(), blobs(60)
    _infinite_weight(model)
    with pytest.raises(ValueError, match="outputs by batch statistics must be finite, but those of 60 of 60 images"):
        _try(model, x, labels, "clean", CLASSES)
    assert _try(model, x, labels, "noise", CLASSES) is None


def test_labels_of_another_number_than_images_are_refused() -> None:
    (x, labels), *others = calibration_batches(120)
    with pytest.raises(ValueError, match=r"one label for each image, got labels of shape \(\d+,\) for images of shape"):
        calibrate(blob_network(), [(x, labels[:-1]), *others], images=30)
