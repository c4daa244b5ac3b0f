import numpy as np
import pytest
import torch
from torch import nn

from steadynorm.lab.sigmoids import ARMS, build_network, check_arms, inputs_in_training, percentiles, shifts
from steadynorm.layers import BatchNorm1d
from steadynorm.reporting.failure import UserError

SIZES = {"inputs": 7, "widths": (5, 4), "classes": 3}


def linear_maps(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("arm", ARMS)
def test_arms_with_one_seed_start_from_the_same_weights(arm: str) -> None:
    ours, plain = (linear_maps(build_network(name, **SIZES, std=0.1, seed=3)) for name in (arm, "none"))
    assert [tuple(map_.weight.shape) for map_ in ours] == [(5, 7), (4, 5), (3, 4)]
    for first, second in zip(ours, plain, strict=True):
        assert torch.equal(first.weight, second.weight)


def test_another_seed_draws_other_weights() -> None:
    first, second = (linear_maps(build_network("none", **SIZES, std=0.1, seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(first.weight, second.weight)


def test_weights_have_the_standard_deviation_asked_for_and_biases_are_zero() -> None:
    maps = linear_maps(build_network("none", inputs=784, widths=(100,), classes=10, std=0.03, seed=0))
    assert maps[0].weight.std().item() == pytest.approx(0.03, rel=0.02)
    assert abs(maps[0].weight.mean().item()) < 5 * 0.03 / 78400**0.5
    assert all(map_.bias.abs().max() == 0 for map_ in maps)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "none"])
def test_before_a_normalization_there_is_no_bias(arm: str) -> None:
    assert [map_.bias is None for map_ in linear_maps(build_network(arm, **SIZES, std=0.1, seed=0))] == [1, 1, 0]


def test_the_plain_network_is_linear_maps_and_sigmoids_in_turn() -> None:
    network = build_network("none", **SIZES, std=0.8, seed=1)
    x = np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32)
    weights = [map_.weight.detach().numpy() for map_ in linear_maps(network)]
    arriving = sigmoid(x @ weights[0].T) @ weights[1].T
    with torch.no_grad():
        np.testing.assert_allclose(network[:-2](torch.from_numpy(x)), arriving, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(network(torch.from_numpy(x)), sigmoid(arriving) @ weights[2].T, rtol=1e-5, atol=1e-6)


def test_normalization_stands_before_the_sigmoids() -> None:
    kinds = [type(module) for module in build_network("batch_norm", **SIZES, std=0.1, seed=0)]
    assert kinds == [nn.Linear, BatchNorm1d, nn.Sigmoid] * 2 + [nn.Linear]


def test_self_tuned_is_self_tuned() -> None:
    network = build_network("self_tuned_batch_norm", **SIZES, std=0.1, seed=0)
    assert isinstance(network[1], BatchNorm1d)
    assert network[1].running == "self_tuned"


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"--arms: no normalization here is called 'group_norm'\. Choose from batch_norm,"
    ):
        check_arms(("none", "group_norm"))


def test_inputs_in_training_are_normalized_batch_by_batch() -> None:
    network = build_network("batch_norm", **SIZES, std=0.8, seed=1)
    norm = network[4]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 5.0, 0.5]))
        x = torch.randn(23, 7, generator=torch.Generator().manual_seed(0)).cumsum(0)  # batches differ
        found = inputs_in_training(network, x, batch_size=10)
        hidden = [sigmoid(_standardized(part @ network[0].weight.numpy().T)) for part in np.split(x[:20].numpy(), 2)]
    wanted = [
        _standardized(part @ network[3].weight.detach().numpy().T) * [1, 2, 3, 4] + [0, -1, 5, 0.5] for part in hidden
    ]
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-4, atol=1e-5)


def _standardized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def test_with_fewer_samples_than_a_batch_all_are_one_batch() -> None:
    network = build_network("batch_norm", **SIZES, std=0.8, seed=1)
    with torch.no_grad():
        found = inputs_in_training(network, torch.randn(9, 7), batch_size=60)
    assert found.shape == (9, 4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_looking_at_inputs_leaves_the_network_as_it_is(arm: str) -> None:
    network = build_network(arm, **SIZES, std=0.8, seed=1).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inputs_in_training(network, torch.randn(12, 7), batch_size=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module.training for module in network.modules())


def test_percentiles_are_numpys() -> None:
    values = torch.randn(137, 6, generator=torch.Generator().manual_seed(0)) ** 3
    np.testing.assert_allclose(percentiles(values), np.percentile(values.numpy(), (15, 50, 85), axis=0), rtol=1e-5)


def test_shifts_of_two_units_by_hand() -> None:
    history = torch.tensor(
        [  # 15th, 50th and 85th percentile of either unit
            [[-1.0, 4.0], [0.0, 4.0], [1.0, 5.0]],
            [[-2.0, 4.0], [3.0, 4.0], [6.0, 8.0]],
            [[0.0, 4.0], [1.0, 4.5], [4.0, 6.0]],
        ]
    )
    found = shifts(history)
    assert found["drift"].tolist() == [2 / 4, 0.5 / 2]  # |3 - 1|, |4 - 4.5|
    assert found["path"].tolist() == [(3 + 2) / 4, (0 + 0.5) / 2]
    assert found["width_ratio"].tolist() == [8 / 2, 4 / 1]


def test_a_unit_without_width_shifts_infinitely_far_or_not_at_all() -> None:
    flat = torch.tensor([[[1.0], [1.0], [1.0]], [[2.0], [2.0], [2.0]]])
    found = shifts(flat)
    assert found["drift"].item() == float("inf")
    assert found["width_ratio"].isnan().all()
