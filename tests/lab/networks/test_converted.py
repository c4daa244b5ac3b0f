import pytest
import torch
from torch import nn

from steadynorm.lab.networks import build_network, describe_network
from steadynorm.lab.networks.converted import ChannelBias
from steadynorm.lab.networks.given import Shape
from steadynorm.lab.normalizations import AS_BUILT, NORMALIZATIONS
from steadynorm.layers import BatchNorm2d
from steadynorm.reporting.failure import UserError
from tests.support.given_networks import HERE, Scale

SHAPE = {"classes": 5, "channels": 2, "image_size": (16, 16)}
OWN = {"depth": 6, "widths": (4,)}
X = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(1))
ARMS = [*NORMALIZATIONS, AS_BUILT, f"{HERE}:Scale,power=0.5", "wide=batch_renorm,r_max=2"]


def build(arm: str, name: str = "make", seed: int = 3, **training: int) -> nn.Module:
    return build_network(f"{HERE}:{name}", arm=arm, seed=seed, **SHAPE, **OWN, **training)


def note(arm: str, name: str = "make") -> str:
    return describe_network(f"{HERE}:{name}", arm=arm, seed=0, shape=Shape(**SHAPE), **OWN)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_shares_every_other_weight_and_trains(arm: str) -> None:
    model, plain = build(arm), build(AS_BUILT)
    assert all(torch.equal(one, other) for one, other in zip(weights(model), weights(plain), strict=True))
    model(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(weights(model), weights(build(arm)), rtol=0, atol=0)


def test_batch_norm_is_the_users_in_our_layer() -> None:
    ours, theirs = build("batch_norm"), build("torch_batch_norm")
    assert type(ours[1]) is BatchNorm2d and type(theirs[1]) is nn.BatchNorm2d
    assert (ours[1].eps, ours[1].momentum) == (1e-3, 0.2)
    torch.testing.assert_close(ours(X), theirs(X))
    torch.testing.assert_close(ours.eval()(X), theirs.eval()(X))


def test_layers_are_told_of_the_training() -> None:
    assert build("batch_norm", update_every=3)[1].update_every == 3
    renorm = build("batch_renorm,r_max=2", update_every=3, batches=1600)[1]
    assert (renorm.update_every, renorm.r_max, renorm.warmup_steps) == (1, 2, 100)
    assert build("self_tuned_batch_norm")[1].running == "self_tuned"


def test_without_normalization_each_channel_has_a_bias_that_starts_at_zero() -> None:
    model = build("none")
    assert type(model[1]) is ChannelBias and not model[1].bias.any()
    with torch.no_grad():
        model[1].bias.normal_()
    convolution = nn.Conv2d(2, 16, 3, padding=1)
    convolution.load_state_dict({"weight": model[0].weight, "bias": model[1].bias})
    torch.testing.assert_close(model[1](model[0](X)), convolution(X))


def test_a_class_of_the_users_takes_the_place_and_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    reset = nn.BatchNorm2d.reset_parameters
    monkeypatch.setattr(
        nn.BatchNorm2d, "reset_parameters", lambda self: (reset(self), nn.init.constant_(self.weight, 3))
    )
    model = build(f"{HERE}:Scale,power=0.5")
    norm = model[1].norm
    assert type(norm) is Scale and norm.power == 0.5 and norm.weight.tolist() == [3] * 16
    x = model[0](X)
    torch.testing.assert_close(model[1](x), norm(x))


def test_an_activation_that_a_batch_norm_had_in_itself_follows_its_successor() -> None:
    model, theirs = build(f"{HERE}:Scale", "ours"), build("torch_batch_norm", "ours")
    x = model[0](X)
    scale = next(module for module in model.modules() if isinstance(module, Scale))
    torch.testing.assert_close(model[1](x), scale(x).relu())
    torch.testing.assert_close(theirs(X), build(AS_BUILT, "ours")(X))
    assert any(type(module) is nn.BatchNorm2d for module in theirs[1].modules())


@pytest.mark.parametrize(
    ("arm", "name", "expected"),
    [
        ("group_norm", "make", "2 batch norms became torch.nn.GroupNorm"),
        ("none", "make", "2 batch norms became a bias per channel, from zero"),
        ("torch_batch_norm", "make", "its batch norms are left as they are"),
        (AS_BUILT, "make", "its layers are as they were built"),
        ("batch_norm", "partly_odd", "1 batch norm became steadynorm.BatchNorm2d. Left as they were: 5 (tests.support"),
        ("none", "partly_odd", "1 batch norm became a bias per channel, from zero. Left as they were: 5 (tests."),
        (f"{HERE}:Scale", "partly_odd", "1 batch norm became Scale. Left as they were: 5 (tests."),
    ],
)
def test_what_was_done_and_left_is_said(arm: str, name: str, expected: str) -> None:
    assert note(arm, name).startswith(expected)


@pytest.mark.parametrize("arm", ["batch_norm", "none", "instance_norm", f"{HERE}:Scale"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", r"no batch norm to replace\. Use --arms as_built\.$"),
        ("all_odd", r"replace \(1: .*Odd\(16\): it is a subclass .*\)\. Use --arms as_built\.$"),
    ],
)
def test_a_network_without_batch_norm_has_one_arm(arm: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build(arm, name)
    assert "\n" not in str(refused.value)
    assert build(AS_BUILT, name)(X).shape == (4, 5)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("group_norm,num_groups=5", r"--arms: group_norm,num_groups=5: .*num_groups must be an integer"),
        ("as_built,eps=1", "as_built has no settings"),
        ("batch_norm,running=bogus", "running must be one of"),
        (
            f"{HERE}:Scale,width=1",
            "must be a class that is called with the number of channels and its settings: got an unexpected keyword "
            r"argument 'width'\. Its settings: power\.$",
        ),
        (f"{HERE}:make", r"must be a class that is called with .*missing a required argument: 'channels'"),
        (f"{HERE}:NO_CLASS", "must be a class that is called with"),
        (f"{HERE}:no_module", r"no_module must make a torch\.nn\.Module, got list"),
        ("bogus", "no normalization is called 'bogus'"),
    ],
)
def test_what_is_no_arm_of_it_is_one_line(arm: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build(arm)
    assert "\n" not in str(refused.value)
