import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from steadynorm.adaptation import calibrate
from steadynorm.adaptation.calibration import (
    DISCOUNT,
    MARGIN_DEVIATIONS,
    REPEATS,
    Calibration,
    _by_batch,
    _fit,
    _Trial,
    _trial_batches,
    _try,
)
from steadynorm.adaptation.class_moments import ClassMoments, Profiles
from steadynorm.adaptation.evidence import Votes
from steadynorm.statistics import Moments, measure
from steadynorm.statistics.noise import sample_noise
from tests.support.adaptation import CLASSES, blob_network, blobs, calibration_batches
from tests.support.surgery import assert_state_equal, snapshot

HAND = Calibration(
    images=10,
    noise={},
    usual_deviation={"a": 0.5, "b": 2.0, "c": 1.0},
    line=(0.25, 0.5),
    slope=0.75,
    bend=-0.5,
    intercept=0.125,
    floor=1.0,
    sure=1.0,
    few=0.5,
    alone=0.75,
    even=0.0,
    margin=0.0,
    classes=ClassMoments(of={}),
    profiles=Profiles(mixed={}, of={}, apart={}),
)


def test_shift_is_the_median_over_layers_in_units_of_the_usual() -> None:
    assert HAND.shift({"a": 1.0, "b": 20.0, "c": 3.0}) == 3.0


def test_shift_is_none_where_nothing_usually_deviates() -> None:
    none = Calibration(**{**vars(HAND), "usual_deviation": {}})
    assert none.shift({"a": 1.0}) == 0.0


def test_accuracy_is_a_plane_over_information_and_concentration() -> None:
    votes = Votes(images=2, probabilities=torch.tensor([1.0, 1.0]), entropy=0.0, confidence=1.2)
    assert HAND.accuracy(votes, 0.25) == pytest.approx(0.125 + 0.75 * math.log(2) - 0.5 * 0.25, rel=1e-6)


@pytest.mark.parametrize("concentration", [0.0, 1.0])
def test_gain_is_the_better_estimate_less_the_discounted_confidence(concentration: float) -> None:
    # Two sure predictions of two classes tell ln 2; stored ones are 0.6 sure.
    votes = Votes(images=2, probabilities=torch.tensor([1.0, 1.0]), entropy=0.0, confidence=1.2)
    accuracy = max(0.125 + 0.75 * math.log(2) - 0.5 * concentration, 0.25 + 0.5 * math.log(2))
    assert HAND.gain(votes, concentration, 3.0) == pytest.approx(accuracy - (0.6 - DISCOUNT * 3), rel=1e-6)


def test_noise_is_what_a_gated_layer_measures() -> None:
    batches = calibration_batches(120)
    expected = statistics.fmean(float(sample_noise(x, measure(x))) for x, _ in batches)
    assert calibrate(blob_network(), batches, images=30).noise["0"] == pytest.approx(expected, rel=1e-5)


def test_images_are_mirrored() -> None:
    model, seen = blob_network(), []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    (first, *_) = batches = calibration_batches(120)
    calibrate(model, batches, images=30)
    assert torch.equal(seen[0], first[0].flip(3))


@pytest.mark.parametrize(("classes", "above"), [(1, False), (CLASSES, True)])
def test_a_window_is_sure_to_have_many_classes_only_where_it_has_them(classes: int, above: bool) -> None:
    calibration = calibrate(blob_network(), calibration_batches(), images=60)
    output, moments = _by_batch(blob_network(), blobs(60, classes=classes, seed=9)[0])
    concentration = calibration.profiles.concentration(moments)
    assert (calibration.accuracy(Votes.of(output, output), concentration) > calibration.sure) == above


def trial(classes: int, *, sure: float, concentration: float, accuracy: float, deviation: float) -> _Trial:
    """A batch of which the share ``sure`` is told apart into two classes, and the rest not at all."""
    votes = Votes(images=1, probabilities=torch.tensor([0.5, 0.5]), entropy=(1 - sure) * math.log(2), confidence=0.5)
    deviations = {"a": deviation, "b": 0.0}
    return _Trial(classes=classes, votes=votes, accuracy=accuracy, concentration=concentration, deviations=deviations)


@pytest.mark.parametrize(("deep", "rows"), [(True, slice(2)), (False, slice(2, 4))], ids=["deep", "one_norm"])
def test_what_is_fitted_to_the_trials(deep: bool, rows: slice) -> None:
    mixed = {"a": Moments(mean=torch.zeros(1), var=torch.ones(1), count=0)} if deep else {}
    trials = [
        trial(1, sure=0.0, concentration=1.0, accuracy=0.1, deviation=1.0),
        trial(1, sure=0.2, concentration=0.9, accuracy=0.3, deviation=3.0),
        trial(2, sure=0.4, concentration=0.6, accuracy=0.3, deviation=1.0),
        trial(2, sure=0.6, concentration=0.5, accuracy=0.5, deviation=0.0),
        trial(5, sure=0.8, concentration=0.1, accuracy=0.8, deviation=2.0),
        trial(5, sure=1.0, concentration=0.2, accuracy=0.9, deviation=4.0),
    ]
    found = _fit(trials, 7, {"a": 0.5}, HAND.classes, replace(HAND.profiles, mixed=mixed))
    told, near = math.log(2) * np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), np.array([1.0, 0.9, 0.6, 0.5, 0.1, 0.2])
    right = np.array([0.1, 0.3, 0.3, 0.5, 0.8, 0.9])
    slope, intercept = np.polyfit(told, right, 1)
    plane, *_ = np.linalg.lstsq(np.stack((np.ones(6), told, near), 1), right, rcond=None)
    accuracy = np.stack((np.ones(6), told, near), 1) @ plane
    gains = np.maximum(accuracy, intercept + slope * told)[4:] - (0.5 - DISCOUNT * np.array([1.0, 2.0]))
    least = accuracy[4:].mean() - 2 * accuracy[4:].std(ddof=1)
    floor, sure = (min(each.mean() + 3 * each.std(ddof=1), least) for each in (accuracy[rows], accuracy[2:4]))
    assert (found.images, found.noise, found.usual_deviation) == (7, {"a": 0.5}, {"a": 2.0})
    assert found.line == (pytest.approx(intercept, rel=1e-5), pytest.approx(slope, rel=1e-5))
    assert (found.intercept, found.slope, found.bend) == tuple(pytest.approx(each, rel=1e-5) for each in plane)
    assert (found.floor, found.sure) == (pytest.approx(floor, rel=1e-5), pytest.approx(sure, rel=1e-5))
    assert (found.few, found.alone) == (pytest.approx(0.55), pytest.approx(0.75))
    assert found.even == pytest.approx(gains.mean(), rel=1e-5)
    assert found.margin == pytest.approx(gains.mean() + MARGIN_DEVIATIONS * gains.std(ddof=1), rel=1e-5)


def test_a_calibration_is_repeated_by_its_seed() -> None:
    first, second, other = (
        calibrate(blob_network(), calibration_batches(), images=60, seed=seed) for seed in (0, 0, 1)
    )
    assert (first.floor, first.margin, first.few) == (second.floor, second.margin, second.few)
    assert first.floor != other.floor


def test_images_are_not_mirrored_where_they_should_not_be() -> None:
    model, seen = blob_network(), []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    (first, *_) = batches = calibration_batches(120)
    calibrate(model, batches, images=30, mirrors=False)
    assert torch.equal(seen[0], first[0])


def test_a_model_that_is_right_no_more_often_than_the_commonest_label_is_refused() -> None:
    model = blob_network()
    with torch.no_grad():
        model[-1].weight.copy_(-model[-1].weight)
    with pytest.raises(ValueError, match=r"right more often than its commonest label is, 17%, got 0%. If its outputs"):
        calibrate(model, calibration_batches(120), images=30)
    calibrate(model, calibration_batches(120), images=30, may_guess=True)


def test_outputs_of_other_shape_than_the_labels_ask_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"calibrate: the model must give logits .* got outputs \(120, 6, 6, 6\) for"):
        calibrate(blob_network()[:1], calibration_batches(120), images=30)


def test_trial_batches_are_of_one_to_all_classes() -> None:
    labels = torch.arange(600) % CLASSES
    batches = list(_trial_batches(labels, 60, torch.Generator().manual_seed(0)))
    assert [count for count, _ in batches[::REPEATS]] == [1, 2, 3, 5, CLASSES]
    assert all(len(torch.unique(labels[rows])) == count for count, rows in batches)
    assert all(len(torch.unique(rows)) == 60 for _, rows in batches)


def test_a_class_of_few_images_is_drawn_with_replacement() -> None:
    labels = torch.arange(60) % CLASSES
    batches = list(_trial_batches(labels, 60, torch.Generator().manual_seed(0)))
    assert all(len(rows) == 60 and len(torch.unique(labels[rows])) == count for count, rows in batches)


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


def test_outputs_that_are_not_finite_by_batch_statistics_alone_are_refused() -> None:
    model, (x, labels) = blob_network(), blobs(60)
    stored = model(x)
    _infinite_weight(model)
    with pytest.raises(ValueError, match="outputs by batch statistics must be finite, but those of 60 of 60 images"):
        _try(model, x, labels, stored, CLASSES, HAND.profiles)


def test_labels_of_another_number_than_images_are_refused() -> None:
    (x, labels), *others = calibration_batches(120)
    with pytest.raises(ValueError, match=r"one label for each image, got labels of shape \(\d+,\) for images of shape"):
        calibrate(blob_network(), [(x, labels[:-1]), *others], images=30)
