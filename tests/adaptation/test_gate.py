from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from steadynorm.adaptation import Calibration, calibrate
from steadynorm.adaptation.evidence import Votes
from steadynorm.adaptation.gate import HOLD, RISK, Gate
from steadynorm.adaptation.methods import BatchStatistics
from steadynorm.adaptation.normalizing import normalizing_by
from steadynorm.statistics import Moments, measure
from tests.support.adaptation import blob_network, blobs, calibration_batches, deep_blob_network, in_runs

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
    assert gate.evidence.gain > calibration.margin


@pytest.mark.parametrize(("mixed", "adapts"), [(-0.7, True), (-0.9, False)])
def test_a_window_like_few_classes_ends_it_at_once_whatever_the_average(
    mixed: float, adapts: bool, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, model = Gate(replace(calibration, few=-1.1, spread=0.4)), blob_network()  # limit: -0.5, half way: -0.8
    for told in (1.0, mixed):
        monkeypatch.setattr(Calibration, "judge", lambda known, features, told=told: (told, 10.0, 1.0))
        gate.predict(model, blobs(IMAGES, shifted=True)[0])
    assert gate.evidence is not None and gate.evidence.mixed > -0.5
    assert gate.evidence.adapts is adapts


@pytest.mark.parametrize(("stake", "adapts"), [(0.1, True), (0.9, False)])
def test_the_more_is_at_stake_the_less_like_few_classes_a_window_must_be(
    stake: float, adapts: bool, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(calibration, few=-1.0, spread=0.5)
    gate, model = Gate(known), blob_network()
    monkeypatch.setattr(Calibration, "judge", lambda known, features: (0.0, 0.2, 1.0))  # 2 standard deviations above
    monkeypatch.setattr(Votes, "at_stake", stake)
    gate.predict(model, blobs(IMAGES, shifted=True)[0])
    assert gate.evidence is not None and gate.evidence.adapts is adapts
    assert (known.limit(RISK * 0.2 / stake) < 0) is adapts


def test_a_window_of_all_classes_is_not_believed_before_the_stream_is(calibration: Calibration) -> None:
    model, (x, _) = blob_network(), blobs(IMAGES, shifted=True)
    gate, fresh = Gate(calibration), Gate(calibration)
    gate.predict(model, blobs(IMAGES, classes=1, shifted=True)[0])
    for part in x.split(10):
        output = gate.predict(model, part)
    assert gate.evidence is not None
    assert gate.evidence.mixed < calibration.limit(1)
    assert torch.equal(output, model(part))
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


def test_what_has_begun_goes_on_with_less_gain_than_it_takes_to_begin(calibration: Calibration) -> None:
    """Between the two margins nothing begins, and what has begun goes on; below both it ends."""
    model, (x, _) = blob_network(), blobs(IMAGES, shifted=True)
    gate = Gate(calibration)
    gate.predict(model, x)
    assert gate.evidence is not None and gate.evidence.adapts
    told = gate.evidence.gain
    for margin, goes_on in ((2 * told / (1 + HOLD), True), (2 * told / HOLD, False)):
        known = replace(calibration, margin=margin)
        fresh, begun = Gate(known), Gate(calibration)
        fresh.predict(model, x)
        assert fresh.evidence is not None and not fresh.evidence.adapts
        begun.predict(model, x)
        begun.calibration = known
        begun.predict(model, x)
        assert begun.evidence is not None and begun.evidence.adapts is goes_on


@pytest.fixture(scope="module")
def deep() -> Calibration:
    x, labels = in_runs(600, seed=2)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    batches = list(zip(x[order].split(60), labels[order].split(60), strict=True))
    return calibrate(deep_blob_network(), batches, images=IMAGES, mirrors=False)


def mixed_batches(*, shifted: bool = False, batch: int = IMAGES) -> tuple[list[Tensor], list[Tensor]]:
    x, labels = in_runs(480, seed=7, shifted=shifted)
    order = torch.randperm(480, generator=torch.Generator().manual_seed(1))
    return list(x[order].split(batch)), list(labels[order].split(batch))


@pytest.mark.parametrize("shifted", [False, True])
def test_classes_in_runs_are_found_and_predicted_better_than_without(shifted: bool, deep: Calibration) -> None:
    gate, model = Gate(replace(deep, least=0.0)), deep_blob_network()  # shifted ones are all taken for one class
    x, labels = in_runs(480, seed=7, shifted=shifted)
    parts, each = list(x.split(IMAGES)), list(labels.split(IMAGES))
    outputs = [gate.predict(model, part) for part in parts]
    assert gate.decision == "ordered"
    assert accuracy(outputs, each) > accuracy([model(part) for part in parts], each) + 0.1
    assert torch.stack([output.exp().sum(1) for output in outputs[-1:]]).allclose(torch.ones(1))


@pytest.mark.parametrize("shifted", [False, True])
def test_mixed_classes_are_never_taken_for_an_order(shifted: bool, deep: Calibration) -> None:
    gate, without, model = Gate(deep), Gate(deep, ordered=False), deep_blob_network()
    for x in mixed_batches(shifted=shifted)[0]:
        assert torch.equal(gate.predict(model, x), without.predict(model, x))
        assert gate.decision != "ordered"


def test_an_order_that_ends_gives_way_to_windows(deep: Calibration) -> None:
    gate, model = Gate(deep), deep_blob_network()
    for part in in_runs(480, seed=7)[0].split(IMAGES):
        gate.predict(model, part)
    assert gate.decision == "ordered"
    decisions = [(gate.predict(model, x), gate.decision)[1] for x in mixed_batches()[0]]
    assert decisions[-1] == "stored"


def test_an_ordered_stream_that_is_not_finite_is_forgotten(deep: Calibration) -> None:
    gate, model = Gate(deep), deep_blob_network()
    x = in_runs(480, seed=7)[0]
    for part in x.split(IMAGES):
        gate.predict(model, part)
    broken = x[:IMAGES].clone()
    broken[0] = torch.nan
    assert torch.equal(gate.predict(model, broken).isnan(), model(broken).isnan())
    assert gate.decision == "stored"


def counted(gate: Gate, model: nn.Module, batches: Iterable[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Outputs, and forwards of each."""
    runs, outputs, forwards = 0, [], []

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    hook = model.register_forward_pre_hook(count)
    for x in batches:
        runs = 0
        outputs.append(gate.predict(model, x))
        forwards.append(runs)
    hook.remove()
    return outputs, forwards


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("runs", [False, True])
def test_no_batch_takes_more_than_one_forward_more(shifted: bool, runs: bool, deep: Calibration) -> None:
    x = (
        list(in_runs(480, seed=7, shifted=shifted)[0].split(20))
        if runs
        else mixed_batches(shifted=shifted, batch=20)[0]
    )
    _, forwards = counted(Gate(deep), deep_blob_network(), x)
    assert max(forwards) <= 2


@pytest.mark.parametrize("shifted", [False, True])
def test_a_sure_decision_spares_forwards_and_predicts_as_the_reference(shifted: bool, calibration: Calibration) -> None:
    xs = [blobs(IMAGES, seed=seed, shifted=shifted)[0] for seed in range(24)]
    sparing, every = (counted(Gate(calibration, every=each), blob_network(), xs) for each in (4, 1))
    assert all(torch.equal(one, other) for one, other in zip(sparing[0], every[0], strict=True))
    assert set(every[1]) == {2}
    assert sum(sparing[1]) <= 24 + 24 // 4 + 5


def test_a_batch_of_one_class_is_seen_while_the_stored_path_is_spared(calibration: Calibration) -> None:
    gate, model = Gate(calibration), blob_network()
    for seed in range(8):
        gate.predict(model, blobs(IMAGES, seed=seed, shifted=True)[0])
    x, _ = blobs(IMAGES, classes=1, shifted=True)
    for _ in range(3):
        output = gate.predict(model, x)
    assert torch.equal(output, model(x))


def test_an_order_is_followed_again_where_the_images_shift(deep: Calibration) -> None:
    gate, model = Gate(replace(deep, few=9.0)), deep_blob_network()
    (first, second, *_), (shifted, *_) = mixed_batches()[0], mixed_batches(shifted=True)[0]
    seen = []
    for x in (first, second, shifted):
        gate.predict(model, x)
        assert gate.order is not None
        seen.append(gate.order.images)
    assert seen == [IMAGES, 2 * IMAGES, IMAGES]


def test_an_order_is_not_believed_before_two_windows_tell_of_it(deep: Calibration) -> None:
    gate, model = Gate(replace(deep, few=9.0)), deep_blob_network()
    decisions = []
    for part in in_runs(480, seed=7)[0].split(IMAGES // 2):
        gate.predict(model, part)
        decisions.append((gate.decision, gate.order.images if gate.order else 0))
    assert [decision for decision, seen in decisions if seen < 2 * IMAGES] == ["stored"] * 4
    assert decisions[-1][0] == "ordered"


def test_an_order_is_forgotten_where_other_statistics_predict(deep: Calibration) -> None:
    gate, model, (first, second, *_) = Gate(replace(deep, few=9.0)), deep_blob_network(), mixed_batches()[0]
    gate.predict(model, first)
    assert gate.order is not None and gate.order.images == IMAGES
    gate.calibration = replace(deep, few=-9.0, spread=0.0, margin=-9.0)
    gate.predict(model, second)
    assert gate.decision == "batch"
    assert gate.order is None


def test_predictions_that_are_too_often_wrong_tell_of_no_order(deep: Calibration) -> None:
    gate, model = Gate(replace(deep, few=9.0, least=1.1)), deep_blob_network()
    for part in in_runs(480, seed=7)[0].split(IMAGES):
        assert torch.equal(gate.predict(model, part), model(part))
        assert gate.order is None


def test_where_classes_are_surely_mixed_no_order_is_followed(deep: Calibration) -> None:
    gate, model = Gate(replace(deep, few=-9.0, spread=0.0)), deep_blob_network()
    for part in in_runs(480, seed=7)[0].split(IMAGES):
        gate.predict(model, part)
        assert gate.order is None
