import sys

import pytest
import torch
from torch import nn

from steadynorm.lab.networks import given
from steadynorm.lab.networks.given import Shape, make_given, run_once
from steadynorm.lab.networks.logits import Logits
from steadynorm.reporting.failure import UserError
from tests.support.given_networks import HERE, make, plain

SHAPE = Shape(classes=10, channels=3, image_size=(12, 12))
SHAPE48 = Shape(classes=10, channels=3, image_size=(48, 48))


def linear_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("name", ["make", "positional", "one", "with_rest", "without_arguments", "Looks"])
def test_a_function_is_called_with_what_it_takes(name):
    model = make_given(f"{HERE}:{name}", SHAPE, seed=0)
    assert model(torch.zeros(2, 3, 12, 12)).shape == (2, 10)


def test_a_function_is_told_what_it_names_and_nothing_else():
    linear = linear_of(make_given(f"{HERE}:named", Shape(classes=7, channels=1, image_size=(9, 9)), seed=0))
    assert (linear.in_features, linear.out_features) == (81, 7)
    with pytest.raises(
        UserError, match=r"named\(num_classes=7, in_chans=1, image_size=\(9, 8\)\): failed with TypeErr"
    ):
        make_given(f"{HERE}:named", Shape(classes=7, channels=1, image_size=(9, 8)), seed=0)


def test_the_seed_decides_the_weights_and_torchs_random_numbers_go_on():
    torch.manual_seed(3)
    first, again, other = (make_given(f"{HERE}:make", SHAPE, seed=seed)[0].weight for seed in (1, 1, 2))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(1)
    assert torch.equal(first, make(10, 3)[0].weight)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_lazy_layers_learn_their_sizes_and_an_object_with_logits_is_unwrapped():
    model = make_given(f"{HERE}:Lazy", SHAPE, seed=0)
    assert isinstance(model, Logits) and model.training
    assert model(torch.zeros(3, 3, 12, 12)).shape == (3, 10)
    assert type(model.model.body[1]) is nn.BatchNorm2d and model.model.body[1].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{HERE}:nothing", r"given_networks: has no 'nothing'\."),
        ("no.such.module:make", r"no\.such\.module: cannot be imported"),
        (f"{HERE}:NO_CLASS", "must be a function that builds a model, got int"),
        (f"{HERE}:needs_more", "must take .classes, channels., or arguments among classes, .* one that needs path"),
        (f"{HERE}:needs_three", "one that needs a, b, c"),
        (f"{HERE}:fails", r"fails\(classes=10\): failed with KeyError: 'no such width"),
        (f"{HERE}:no_module", r"no_module\(classes=10\): must give a torch\.nn\.Module, got list\."),
        (
            "torch.nn:Identity",
            r"torch\.nn:Identity\(num_classes=10\): must give shape \(N, 10\) for images of 3x12x12, got \(2, 3, 12",
        ),
        ("torch.nn:Linear", r"torch\.nn:Linear\(10, 3\): failed on two images of 3x12x12 with RuntimeError"),
    ],
)
def test_what_is_no_network_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as refused:
        make_given(name, SHAPE, seed=0)
    assert "\n" not in str(refused.value)


def test_a_network_of_other_images_is_refused():
    with pytest.raises(UserError, match=r"without_arguments\(\): failed on two images of 1x12x12 with RuntimeError"):
        make_given(f"{HERE}:without_arguments", Shape(classes=10, channels=1, image_size=(12, 12)), seed=0)


def test_a_trial_leaves_statistics_and_modes():
    model = make(10, 3)
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert run_once(model, SHAPE, "x") is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model[1].training


def test_a_network_may_be_built_on_the_meta_device():
    with torch.device("meta"):
        model = make_given(f"{HERE}:plain", SHAPE, seed=0)
    assert linear_of(model).weight.is_meta and not linear_of(plain(10, 3)).weight.is_meta


@pytest.mark.parametrize(("name", "package"), [("timm:resnet18", "timm"), ("hf:resnet", "transformers")])
def test_an_absent_package_is_named_with_the_command_that_installs_it(monkeypatch, name, package):
    monkeypatch.setattr(given, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"--network {name}: {package} is not installed\. Run: pip install {package}$"):
        make_given(name, SHAPE, seed=0)


def test_a_model_type_of_transformers_has_the_classes_and_channels_of_the_data():
    pytest.importorskip("transformers")
    model = make_given("hf:resnet", Shape(classes=7, channels=1, image_size=(32, 32)), seed=0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match="--network hf:no-such-model: failed with ValueError: Unrecognized"):
        make_given("hf:no-such-model", SHAPE, seed=0)


def test_a_configuration_file_of_transformers_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    transformers.ResNetConfig(**sizes).save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "config.json"):
        model = make_given(f"hf:{place}", Shape(classes=7, channels=1, image_size=(32, 32)), seed=0)
        assert linear_of(model).weight.shape == (7, 8)


def test_a_model_of_timm_has_the_classes_and_channels_of_the_data():
    pytest.importorskip("timm")
    model = make_given("timm:resnet18", Shape(classes=7, channels=1, image_size=(32, 32)), seed=0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    torch.manual_seed(0)
    created = sys.modules["timm"].create_model("resnet18", num_classes=7, in_chans=1)
    assert torch.equal(model.conv1.weight, created.conv1.weight)
    assert make_given("timm:vit_tiny_patch16_224", SHAPE48, seed=0).pos_embed.shape[1] == 10
    for name in ("no_such_model", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(UserError, match="has no model of this name"):
            make_given(f"timm:{name}", SHAPE, seed=0)
