from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from steadynorm.adaptation import Calibration, calibrate
from steadynorm.adaptation.gate import HOLD_FLOOR, HOLD_MARGIN, Gate
from steadynorm.adaptation.methods import BatchStatistics
from steadynorm.adaptation.normalizing import normalizing_by
from steadynorm.statistics import Moments, measure
from tests.support.adaptation import blob_network, blobs, calibration_batches

IMAGES = 60
BATCHES = range(10, 16)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(blob_network(), calibration_batches(), images=IMAGES)


def accuracy(outputs: Iterable[Tensor], labels: Iterable[Tensor]) -> float:
    return float(torch.cat([out.argmax(1) == each for out, each in zip(outputs, labels, strict=True)]).double().mean())


def stream(*, classes: int = 6, shifted: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [blobs(IMAGES, classes=classes, seed=seed, shifted=shifted) for seed in BATCHES]
    return [x for x, _ in pairs], [labels for _, labels in pairs]


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_a_clean_stream_is_predicted_by_stored_statistics(classes: int, calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    xs, _ = stream(classes=classes)
    assert all(torch.equal(gate.predict(model, x), model(x)) for x in xs)


def test_a_shifted_stream_of_all_classes_is_predicted_by_batch_statistics(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    xs, labels = stream(shifted=True)
    outputs = [gate.predict(model, x) for x in xs]
    assert all(torch.equal(output, BatchStatistics().predict(model, x)) for output, x in zip(outputs, xs, strict=True))
    assert accuracy(outputs, labels) > accuracy([model(x) for x in xs], labels) + 0.05


def test_a_shifted_stream_of_one_class_is_predicted_by_stored_statistics(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    xs, _ = stream(classes=1, shifted=True)
    assert all(torch.equal(gate.predict(model, x), model(x)) for x in xs)


def test_without_a_full_window_stored_statistics_are_used(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    x, _ = blobs(IMAGES - 1, shifted=True)
    assert torch.equal(gate.predict(model, x), model(x))
    assert gate.evidence is None


def test_single_images_are_normalized_by_the_newest_that_fill_a_window(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    x, _ = blobs(2 * IMAGES + 5, shifted=True)
    outputs = [gate.predict(model, one) for one in x.split(1)]
    assert gate.evidence is not None and gate.evidence.adapts
    moments = measure(x[-IMAGES:])
    with normalizing_by(model, lambda name, input, stored: moments):
        torch.testing.assert_close(outputs[-1], model(x[-1:]))


def test_a_batch_of_one_class_in_a_shifted_stream_is_predicted_by_stored_statistics(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    for x in stream(shifted=True)[0]:
        gate.predict(model, x)
    x, _ = blobs(IMAGES // 2, classes=1, shifted=True)
    gate.predict(model, x)
    assert torch.equal(gate.predict(model, x), model(x))
    assert gate.evidence is not None
    assert gate.evidence.information > calibration.floor
    assert gate.evidence.gain > calibration.margin


def test_a_window_of_all_classes_is_not_believed_before_the_stream_is(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    gate.predict(model, blobs(IMAGES, classes=1, shifted=True)[0])
    x, _ = blobs(IMAGES, shifted=True)
    for part in x.split(10):
        output = gate.predict(model, part)
    assert gate.evidence is not None
    assert gate.evidence.information < calibration.floor
    assert torch.equal(output, model(part))
    fresh = Gate(calibration)
    assert not torch.equal(fresh.predict(model, x), model(x))


def test_evidence_of_the_stream_is_averaged(calibration: Calibration) -> None:
    told = []
    gate, model = Gate(calibration), blob_network()
    for classes in (6, 1):
        fresh = Gate(calibration)
        x, _ = blobs(2 * IMAGES, classes=classes, shifted=True)
        for each in (fresh, gate):
            each.predict(model, x)
        assert fresh.evidence is not None
        told.append(fresh.evidence.gain)
    assert gate.evidence is not None
    assert gate.evidence.gain == pytest.approx(told[0] / 3 + told[1] * 2 / 3)  # 2·W images beside a memory of W


def test_reset_forgets_the_stream(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    gate.predict(model, blobs(IMAGES, shifted=True)[0])
    gate.reset()
    x, _ = blobs(1, shifted=True)
    assert torch.equal(gate.predict(model, x), model(x))
    assert gate.evidence is None


def test_a_batch_that_is_not_finite_is_predicted_by_stored_statistics_and_forgotten(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    gate.predict(model, blobs(IMAGES, shifted=True)[0])
    x, _ = blobs(IMAGES, shifted=True)
    broken = x.clone()
    broken[0] = torch.nan
    assert torch.equal(gate.predict(model, broken).isnan(), model(broken).isnan())
    assert torch.equal(gate.predict(model, x), BatchStatistics().predict(model, x))


def test_windows_pool_moments_of_unequal_batches(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    x, _ = blobs(IMAGES + 40, shifted=True)
    *_, last = (gate.predict(model, part) for part in x.split([40, 50, 10]))
    assert gate.evidence is not None and gate.evidence.adapts
    pooled = Moments(mean=x[40:].mean((0, 2, 3)), var=x[40:].var((0, 2, 3), correction=0), count=0)
    with normalizing_by(model, lambda name, input, stored: pooled):
        torch.testing.assert_close(last, model(x[-10:]))


@pytest.mark.parametrize(("name", "hold"), [("floor", HOLD_FLOOR), ("margin", HOLD_MARGIN)])
def test_what_has_begun_goes_on_with_less_evidence_than_it_takes_to_begin(
    name: str, hold: float, calibration: Calibration
) -> None:
    """Between the two limits nothing begins, and what has begun goes on; below both it ends."""
    model, (x, _) = blob_network(), blobs(IMAGES, shifted=True)
    gate = Gate(calibration)
    gate.predict(model, x)
    assert gate.evidence is not None and gate.evidence.adapts
    told = gate.evidence.information if name == "floor" else gate.evidence.gain
    between, above = (
        replace(calibration, **{name: told / (1 + hold) * 2}),
        replace(calibration, **{name: told * 2 / hold}),
    )
    for limits, begins, goes_on in ((between, False, True), (above, False, False)):
        fresh = Gate(limits)
        fresh.predict(model, x)
        assert fresh.evidence is not None and fresh.evidence.adapts is begins
        begun = Gate(calibration)
        begun.predict(model, x)
        begun._calibration = limits
        begun.predict(model, x)
        assert begun.evidence is not None and begun.evidence.adapts is goes_on
