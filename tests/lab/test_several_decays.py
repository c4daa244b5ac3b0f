import pytest
import torch

from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.lab.several_decays import DECAYS, SeveralDecays, with_decay
from steadynorm.layers import BatchNorm2d

X = torch.randn(6, 8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 + 1


def trained(layer: torch.nn.Module) -> torch.nn.Module:
    layer.train()
    for x in X:
        layer(x)
    return layer.eval()


@pytest.mark.parametrize("decay", DECAYS)
def test_the_statistics_of_a_decay_are_those_of_a_layer_with_its_momentum(decay: float) -> None:
    layer = with_decay(trained(SeveralDecays(3)), decay)
    alone = trained(BatchNorm2d(3, momentum=1 - decay, activation="relu"))
    torch.testing.assert_close(layer.norm.running_mean, alone.running_mean)
    torch.testing.assert_close(layer.norm.running_var, alone.running_var)
    torch.testing.assert_close(layer(X[0]), alone(X[0]))


def test_without_a_decay_the_statistics_are_self_tuned() -> None:
    layer = trained(SeveralDecays(3))
    alone = trained(BatchNorm2d(3, running="self_tuned", activation="relu"))
    torch.testing.assert_close(with_decay(layer, None)(X[0]), alone(X[0]))


def test_choosing_a_decay_leaves_the_model_as_it_was() -> None:
    layer = trained(SeveralDecays(3))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with_decay(layer, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_evaluation_moves_nothing() -> None:
    layer = trained(SeveralDecays(3))
    before = layer.means.clone()
    layer(X[0])
    assert torch.equal(layer.means, before)


def test_training_normalizes_as_batch_norm_does() -> None:
    layer, alone = SeveralDecays(3).train(), BatchNorm2d(3, activation="relu").train()
    torch.testing.assert_close(layer(X[0], X[1]), alone(X[0], X[1]))


def test_a_decay_that_was_not_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay must be one of \(0\.9, 0\.99, 0\.5\) or None, got 0\.7"):
        with_decay(SeveralDecays(3), 0.7)


def test_it_is_an_arm() -> None:
    assert isinstance(NORMALIZATIONS["several_decays"].build(3), SeveralDecays)


def test_it_has_other_activations_and_dimensions() -> None:
    layer = SeveralDecays(4, dimensions=1, activation=None)
    y = layer(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    assert y.shape == (8, 4) and y.min() < 0 and layer.means.any()
