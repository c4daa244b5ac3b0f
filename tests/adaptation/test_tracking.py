import pytest
import torch
from torch.nn.functional import one_hot

from steadynorm.adaptation.class_moments import shifted_stored
from steadynorm.adaptation.normalizing import stored_moments
from steadynorm.adaptation.tracking import CHUNK, Tracker
from steadynorm.statistics import measure
from tests.support.adaptation import CLASSES, blobs, deep_blob_network
from tests.support.surgery import assert_state_equal, snapshot


def tracker() -> Tracker:
    from steadynorm.adaptation import calibrate
    from tests.support.adaptation import calibration_batches

    return Tracker(calibrate(deep_blob_network(), calibration_batches(), images=60).classes)


def test_at_first_it_is_the_model() -> None:
    model, (x, _) = deep_blob_network(), blobs(20, shifted=True)
    assert torch.equal(tracker().predict(model, x), model(x))


@pytest.mark.parametrize("label", [0, 3])
def test_images_of_one_class_bring_the_moments_of_all_under_the_shift(label: int) -> None:
    """So that the others are predicted right, of which none has been seen."""
    model, tracked = deep_blob_network(), tracker()
    for seed in range(12):
        x, labels = blobs(60 * CLASSES, seed=seed, shifted=True)
        alone = labels == label
        tracked.learn(model, x[alone], one_hot(labels[alone], CLASSES).float())
    x, labels = blobs(120, seed=99, shifted=True)
    right = (tracked.predict(model, x).argmax(1) == labels).double().mean()
    assert right > 0.95 > (model(x).argmax(1) == labels).double().mean() + 0.2


def test_clean_images_of_one_class_leave_the_stored_moments() -> None:
    model, tracked = deep_blob_network(), tracker()
    for seed in range(12):
        x, labels = blobs(60 * CLASSES, seed=seed)
        tracked.learn(model, x[labels == 1], one_hot(labels[labels == 1], CLASSES).float())
    for name, stored in stored_moments(model).items():
        torch.testing.assert_close(tracked.moments[name].mean, stored.mean, atol=0.15, rtol=0.1)
        torch.testing.assert_close(tracked.moments[name].var, stored.var, atol=0.05, rtol=0.3)


def test_single_images_are_learned_from_by_chunks() -> None:
    model, tracked = deep_blob_network(), tracker()
    x, labels = blobs(CHUNK, shifted=True)
    shares = one_hot(labels, CLASSES).float()
    for number in range(CHUNK - 1):
        tracked.learn(model, x[number : number + 1], shares[number : number + 1])
    assert tracked.chunks == 0
    tracked.learn(model, x[-1:], shares[-1:])
    at_once = tracker()
    at_once.learn(model, x, shares)
    assert tracked.chunks == at_once.chunks == 1
    for name, each in at_once.moments.items():
        assert torch.equal(tracked.moments[name].mean, each.mean)


def test_the_model_is_untouched() -> None:
    model, tracked = deep_blob_network().train(), tracker()
    before, (x, labels) = snapshot(model), blobs(CHUNK, shifted=True)
    tracked.learn(model, x, one_hot(labels, CLASSES).float())
    tracked.predict(model, x)
    assert_state_equal(model, before)


def test_chunks_are_averaged_at_first_and_then_forgotten_by_a_fifth_each() -> None:
    model, tracked, (x, labels) = deep_blob_network(), tracker(), blobs(CHUNK, shifted=True)
    shares = one_hot(labels, CLASSES).float()
    stored = stored_moments(model)["0"]
    new = shifted_stored(stored, measure(x), tracked._classes.mixture("0", shares.mean(0)))
    expected = stored.mean
    for weight in (1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 5, 1 / 5):
        expected = expected + weight * (new.mean - expected)
        tracked.learn(model, x, shares)
        torch.testing.assert_close(tracked.moments["0"].mean, expected)
