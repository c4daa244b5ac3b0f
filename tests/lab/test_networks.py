import pytest
import torch
from torch import nn

from steadynorm.lab.networks import build_network, zero_last_gamma_
from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.reporting.failure import UserError


def build(name: str = "cnn", arm: str = "batch_norm", **changes: object) -> nn.Module:
    arguments: dict[str, object] = {"depth": 6, "widths": (32, 64, 128), "classes": 10, "seed": 0}
    return build_network(name, arm=arm, **(arguments | changes))


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
@pytest.mark.parametrize("arm", NORMALIZATIONS)
def test_every_arm_starts_from_the_same_weights(name: str, arm: str) -> None:
    ours, plain = convolutions(build(name, arm)), convolutions(build(name, "none"))
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[key].weight, plain[key].weight) for key in ours)


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_another_seed_gives_other_weights(name: str) -> None:
    first, second = convolutions(build(name, seed=0)), convolutions(build(name, seed=1))
    assert all(not torch.equal(first[key].weight, second[key].weight) for key in first)


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
@pytest.mark.parametrize("arm", NORMALIZATIONS)
def test_every_arm_maps_images_to_logits_and_trains(name: str, arm: str) -> None:
    model = build(name, arm)
    logits = model(torch.randn(4, 3, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (4, 10)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("arm", NORMALIZATIONS)
def test_only_the_arm_without_normalization_has_convolution_biases(arm: str) -> None:
    assert all((layer.bias is not None) == (arm == "none") for layer in convolutions(build(arm=arm)).values())


def test_the_default_cnn_has_six_convolutions_of_widths_32_64_128() -> None:
    assert [layer.out_channels for layer in convolutions(build()).values()] == [32, 32, 64, 64, 128, 128]


def test_an_odd_convolution_goes_to_an_early_stage() -> None:
    assert [layer.out_channels for layer in convolutions(build(depth=7)).values()] == [32, 32, 32, 64, 64, 128, 128]


def test_resnet20_has_nineteen_convolutions_and_the_published_number_of_parameters() -> None:
    # He et al. 2016, table 6: 0.27 M. Here 267,696 of convolutions, 1,376 of norms, 650 of the classifier.
    model = build("resnet20")
    assert len(convolutions(model)) == 19
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722


def test_initial_weights_have_the_variance_of_he_for_the_backward_pass() -> None:
    weight = convolutions(build())["conv5"].weight  # 64 to 128 channels
    assert weight.var().item() == pytest.approx(2 / (128 * 9), rel=0.02)


def test_a_residual_block_adds_its_input_halved_and_widened_where_it_must() -> None:
    model = build("resnet20", "none")
    block = model.block4  # the first of the second stage: 16 to 32 channels, stride 2
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], dim=1).relu()
    assert torch.equal(block(x), expected)
    assert torch.equal(build("resnet20", "none").block1(torch.zeros(1, 16, 8, 8)), torch.zeros(1, 16, 8, 8))


def test_an_unknown_arm_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'batchnorm'.*batch_norm, .*none"):
        build(arm="batchnorm")


def test_too_few_convolutions_are_refused() -> None:
    with pytest.raises(UserError, match="--depth: 3 stages need at least 3 convolutions, got 2"):
        build(depth=2)


@pytest.mark.parametrize("widths", [(), (0,), (1, 2, 3, 4, 5, 6)])
def test_impossible_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="--widths"):
        build(widths=widths)


def test_smaller_images_have_fewer_stages() -> None:
    widths = (4, 4, 4, 4)
    build(widths=widths, image_size=(28, 64))(torch.randn(2, 3, 28, 64))
    with pytest.raises(UserError, match="must be one to 3 positive numbers for images of 64x15"):
        build(widths=widths, image_size=(64, 15))


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_a_network_takes_the_channels_and_gives_the_classes_that_it_is_built_for(name: str) -> None:
    assert build(name, channels=1, classes=7)(torch.randn(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("arm", ["batch_norm", "ghost_batch_norm", "self_tuned_batch_norm"])
def test_running_statistics_move_after_as_many_batches_as_asked_for(arm: str) -> None:
    model = build_network("cnn", arm=arm, depth=2, widths=(4, 8), classes=10, seed=0, update_every=3)
    moved = []
    for _ in range(6):
        before = model.state_dict()["norm1.running_mean"].clone()
        model(torch.randn(2, 3, 8, 8))
        moved.append(not torch.equal(before, model.state_dict()["norm1.running_mean"]))
    assert moved == [False, False, True] * 2


def test_a_residual_block_whose_last_weight_is_zero_is_its_shortcut() -> None:
    model = build_network("resnet20", arm="batch_norm", depth=6, widths=(4,), classes=10, seed=0)
    zero_last_gamma_(model)
    x = torch.randn(4, 16, 8, 8)
    torch.testing.assert_close(model.block1(x), x.relu())
    touched = [name for name, tensor in model.named_parameters() if not tensor.any() and name.endswith("weight")]
    assert touched == [f"block{number}.norm2.weight" for number in range(1, 10)]


@pytest.mark.parametrize(("name", "arm"), [("cnn", "batch_norm"), ("resnet20", "none")])
def test_what_has_no_such_weight_is_refused(name: str, arm: str) -> None:
    with pytest.raises(UserError, match="needs residual blocks whose normalization has a weight"):
        zero_last_gamma_(build_network(name, arm=arm, depth=6, widths=(4, 8, 8), classes=10, seed=0))
