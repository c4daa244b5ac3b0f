import pytest
import torch
from torch import nn

from steadynorm.lab.networks import NETWORKS, RESIDUAL, build_network, zero_last_gamma_
from steadynorm.lab.networks.blocks import BasicBlock
from steadynorm.lab.networks.mobilenet import InvertedBlock
from steadynorm.lab.normalizations import NORMALIZATIONS, Normalization, find_normalization
from steadynorm.layers import BatchNorm1d
from steadynorm.reporting.failure import UserError
from tests.support.given_networks import HERE, Scale

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


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


OWN = [name for name in NETWORKS if name not in ("cnn", "resnet20")]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("size", "image_channels"), [((28, 28), 1), ((32, 32), 3), ((48, 40), 3)])
def test_our_networks_take_images_of_any_size(name: str, size: tuple[int, int], image_channels: int) -> None:
    with torch.device("meta"):
        model = build(name, channels=image_channels, image_size=size, classes=7)
        assert model(torch.empty(2, image_channels, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # He et al.'s 11.69 M of ImageNet, less 513,000 of 1000 classes, plus 5,130, less 7,680 of a 7x7 first layer
        ("resnet18", 11_173_962),
        ("vgg", 9_228_362),  # 9,217,728 of convolutions, 5,504 of norms, 5,130 of the classifier
        ("mobilenet", 2_236_682),  # torchvision's 3,504,872, less 1,281,000 of 1000 classes, plus 12,810
        ("mlp", 921_610),
    ],
)
def test_our_networks_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name).parameters()) == parameters


def test_an_mlp_starts_from_the_same_weights_in_every_arm_and_its_norms_are_of_one_dimension() -> None:
    plain = build("mlp", "none", image_size=(8, 8))
    for arm in [name for name in NORMALIZATIONS if name != "instance_norm"]:
        model = build("mlp", arm, image_size=(8, 8))
        assert torch.equal(model.linear3.weight, plain.linear3.weight)
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert type(build("mlp", image_size=(8, 8)).norm1) is BatchNorm1d
    assert (plain.linear1.bias is not None) and build("mlp", image_size=(8, 8)).linear1.bias is None


def test_the_units_of_an_mlp_have_nothing_to_average_over() -> None:
    with pytest.raises(UserError, match="--arms: instance_norm: failed with ValueError: instance_norm needs positions"):
        build("mlp", "instance_norm")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_every_arm_is_in_networks_with_other_shortcuts(name: str) -> None:
    plain = convolutions(build(name, "none"))
    for arm in NORMALIZATIONS:
        with torch.device("meta"):
            model = build(name, arm)
        norms = [module for module in model.modules() if isinstance(module, NORMS)]
        assert convolutions(model).keys() == plain.keys()
        assert bool(norms) == (arm != "none")


@pytest.mark.parametrize("norm", [find_normalization("batch_norm"), find_normalization("none")])
def test_a_projected_shortcut_is_added_before_the_activation(norm: Normalization) -> None:
    block = BasicBlock(4, 8, 2, norm, projects=True)
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), block.projection(x).relu())
    assert block.projection(x).min() < 0 and block.projection[0].kernel_size == (1, 1)


def test_an_inverted_block_adds_its_input_and_has_no_last_activation() -> None:
    block = InvertedBlock(4, 4, 1, find_normalization("batch_norm"), expansion=6)
    nn.init.zeros_(block.project.weight)
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x)
    assert not InvertedBlock(4, 8, 1, find_normalization("batch_norm"), expansion=6).adds_input


@pytest.mark.parametrize("name", RESIDUAL)
def test_residual_networks_may_start_as_their_shortcuts(name: str) -> None:
    model = build(name)
    assert not _norms_of_zeros(model)
    zero_last_gamma_(model)
    assert _norms_of_zeros(model)


def _norms_of_zeros(model: nn.Module) -> list[nn.Module]:
    """The layers whose every weight is zero."""
    weights = ((module, getattr(module, "weight", None)) for module in model.modules())
    return [module for module, weight in weights if weight is not None and not weight.any()]


@pytest.mark.parametrize("name", ["bogus", "resnet50", ""])
def test_an_unknown_network_names_the_known_ones(name: str) -> None:
    with pytest.raises(
        UserError, match=r"--network: no network is called .* cnn, .*mlp, PACKAGE\.MODULE:FUNCTION, timm"
    ):
        build(name)


def test_an_arm_may_be_a_class_of_the_users_or_have_settings() -> None:
    model = build(arm=f"half={HERE}:Scale,power=0.5", depth=2, widths=(4, 8))
    assert type(model.norm1.norm) is Scale and model.norm1.norm.power == 0.5
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.norm1(x, residual=x), (model.norm1.norm(x) + x).relu())
    assert build(arm="batch_renorm,r_max=2", depth=2, widths=(4, 8)).norm2.r_max == 2
