import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import steadynorm
from steadynorm.adaptation import ADAPTATIONS, Calibration, calibrate
from steadynorm.adaptation.methods import BatchStatistics, Exponential, GatedLayers, Prior, SelfTuning, StoredStatistics
from tests.support.adaptation import blob_network, blobs, calibration_batches
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, snapshot


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(blob_network(), calibration_batches(), images=60)


def one_layer(layer: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """A single norm with stored mean 1 and variance 4, and no eps."""
    norm = layer(1, eps=0.0)
    norm.running_mean.fill_(1)
    norm.running_var.fill_(4)
    return norm.eval()


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)


def test_stored_is_the_model_in_evaluation() -> None:
    model = mixed()
    assert torch.equal(StoredStatistics().predict(deepcopy(model).train(), MIXED_INPUT), model(MIXED_INPUT))


def test_batch_is_the_model_in_training() -> None:
    model = mixed()
    torch.testing.assert_close(BatchStatistics().predict(model, MIXED_INPUT), deepcopy(model).train()(MIXED_INPUT))


def test_prior_of_no_samples_is_batch_and_of_infinitely_many_is_stored() -> None:
    model = mixed()
    assert torch.equal(Prior(0).predict(model, MIXED_INPUT), BatchStatistics().predict(model, MIXED_INPUT))
    assert torch.equal(Prior(math.inf).predict(model, MIXED_INPUT), model(MIXED_INPUT))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, steadynorm.BatchNorm2d])
def test_prior_mixes_by_the_number_of_samples(layer: type[nn.Module]) -> None:
    # weight 2/(6 + 2): mean 1·3/4 + 9/4 = 3, variance 4·3/4 + 4/4 + 3/16·64 = 16
    y = Prior(6).predict(one_layer(layer), values(7, 11))
    assert y.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, steadynorm.BatchNorm2d])
def test_exponential_follows_batch_after_batch(layer: type[nn.Module]) -> None:
    adaptation, model = Exponential(0.75), one_layer(layer)
    first = adaptation.predict(model, values(4, 6))  # mean 3/4·1 + 1/4·5 = 2, variance 3/4·4 + 1/4·2 = 3.5
    second = adaptation.predict(model, values(8, 12))  # mean 3/4·2 + 1/4·10 = 4, variance 3/4·3.5 + 1/4·8 = 4.625
    assert first.flatten().tolist() == pytest.approx([2 / 3.5**0.5, 4 / 3.5**0.5])
    assert second.flatten().tolist() == pytest.approx([4 / 4.625**0.5, 8 / 4.625**0.5])


def test_exponential_that_never_forgets_is_stored() -> None:
    model = mixed()
    torch.testing.assert_close(Exponential(1.0).predict(model, MIXED_INPUT), model(MIXED_INPUT), rtol=0, atol=0)


@pytest.mark.parametrize("make", [lambda: Exponential(0.5), SelfTuning])
def test_reset_begins_with_the_stored_statistics_again(make: Callable[[], Exponential | SelfTuning]) -> None:
    adaptation, model = make(), one_layer()
    first = adaptation.predict(model, values(4, 6))
    assert not torch.equal(adaptation.predict(model, values(4, 6)), first)
    adaptation.reset()
    assert torch.equal(adaptation.predict(model, values(4, 6)), first)


def test_self_tuning_gives_half_of_the_first_batch_to_the_stored_statistics_where_nothing_is_forgotten() -> None:
    # Expert k after two batches of one count: (stored·(1 − m) + batch)/(2 − m), m = 2^-k; all trusted alike at first.
    adaptation, model = SelfTuning(), one_layer()
    y = adaptation.predict(model, values(4, 6)).flatten()
    bank = adaptation._banks[""]
    m = torch.exp2(-torch.arange(11.0))
    torch.testing.assert_close(bank.experts[:, 0, 0], (1 * (1 - m) + 5) / (2 - m))
    mean, var = bank.estimate()
    torch.testing.assert_close(y, (torch.tensor([4.0, 6.0]) - mean) / var.sqrt())


def test_self_tuning_forgets_the_stored_statistics_sooner_than_a_long_memory() -> None:
    model, distance = blob_network(), {}
    for adaptation in (SelfTuning(), Exponential(0.99)):
        for seed in range(20):
            x, _ = blobs(60, seed=seed, shifted=True)
            y = adaptation.predict(model, x)
        distance[adaptation.name] = float((y - BatchStatistics().predict(model, x)).abs().mean())
    assert distance["self_tuned"] < 0.1 * distance["ema_0.99"]


def test_gated_is_the_converted_model_with_calibrated_noise(calibration: Calibration) -> None:
    x, _ = blobs(30, shifted=True)
    model = blob_network()
    gated = steadynorm.surgery.convert_(deepcopy(model), "gated_batch_norm").model
    gated[0].noise.fill_(calibration.noise["0"])
    assert torch.equal(GatedLayers(calibration).predict(model, x), gated(x))


@pytest.mark.parametrize("name", ADAPTATIONS)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch"])
def test_the_model_is_untouched(name: str, ours: bool, calibration: Calibration) -> None:
    model = blob_network(ours=ours).train()
    before, adaptation = snapshot(model), ADAPTATIONS[name](calibration)
    for seed in range(3):
        output = adaptation.predict(model, blobs(60, seed=seed, shifted=True)[0])
        assert not output.requires_grad
    assert_state_equal(model, before)


@pytest.mark.parametrize("name", [name for name in ADAPTATIONS if name != "gated"])  # which predicts by a copy
def test_the_model_is_untouched_after_an_exception(name: str, calibration: Calibration) -> None:
    model = blob_network().train()
    adaptation, before = ADAPTATIONS[name](calibration), snapshot(model)
    with pytest.raises(RuntimeError):
        adaptation.predict(nn.Sequential(model, nn.Linear(1, 1)), blobs(60)[0])
    assert_state_equal(model, before)


def test_each_finding_is_a_fresh_one_of_its_name(calibration: Calibration) -> None:
    for name in ADAPTATIONS:
        assert ADAPTATIONS[name](calibration).name == name
        assert ADAPTATIONS[name](calibration) is not ADAPTATIONS[name](calibration)
