import re

import pytest
import torch
from safetensors.torch import save_file

from steadynorm.deploy.source import Logits, as_logits, load_source
from steadynorm.lab.networks import build_network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.run_directory import save_tensors
from tests.support.deploy import build_fixed_size, build_two_outputs, network, save_checkpoint
from tests.support.given_networks import HERE as GIVEN

HERE = "tests.support.deploy"


def test_a_checkpoint_is_a_source(tmp_path):
    model = save_checkpoint(tmp_path / "a.safetensors")
    found = load_source(str(tmp_path / "a.safetensors"), weights=None)
    x = torch.randn(2, 3, 32, 32)
    assert found.name == "cnn with batch norm" and torch.equal(found.model(x), model(x))


def test_a_function_builds_a_source():
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_source(f"{HERE}:build_model", weights=None).model(x), network()(x))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_weights_come_from_a_file(tmp_path, name):
    state = {key: value + 1 if value.is_floating_point() else value for key, value in network().state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    found = load_source(f"{HERE}:build_model", weights=tmp_path / name).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nowhere.safetensors", "there is no such file"),
        ("torchvision.models", "there is no such file. Give a .safetensors file of a run's checkpoints, or a function"),
        ("no_such_package:build", "no_such_package: cannot be imported (ModuleNotFoundError"),
        (f"{HERE}:absent", "has no 'absent'"),
        (f"{HERE}:build_failing", "failed with RuntimeError: no such weights."),
        (f"{HERE}:build_nothing", "must return a torch.nn.Module, got object"),
    ],
)
def test_what_cannot_be_built_is_one_line(what, why):
    with pytest.raises(UserError, match=re.escape(why)) as caught:
        load_source(what, weights=None)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = network().state_dict()
    state["conv1.weight"] = state["conv1.weight"][:2].clone()
    state["other"] = state.pop("classifier.bias")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as caught:
        load_source(f"{HERE}:build_model", weights=tmp_path / "a.safetensors")
    assert str(caught.value).endswith(
        "does not fit the model: classifier.bias is missing; other is of no use; "
        "conv1.weight has shape (2, 3, 3, 3), the model's (4, 3, 3, 3). Build the model as it was when they were saved."
    )


@pytest.mark.parametrize(("content", "why"), [(b"", "is empty"), (b"no tensors", "is text that begins with 'no tens")])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_damaged_file_of_weights_is_one_line(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        load_source(f"{HERE}:build_model", weights=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_source(f"{HERE}:build_model", weights=tmp_path / "a.pt")


def test_a_checkpoint_takes_no_other_weights(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="has its own weights"):
        load_source(str(tmp_path / "a.safetensors"), weights=tmp_path / "a.safetensors")


def test_the_first_of_several_outputs_is_the_logits():
    x, model = torch.randn(2, 3, 32, 32), build_two_outputs()
    wrapped = as_logits(model, x)
    assert isinstance(wrapped, Logits) and not wrapped.training
    assert torch.equal(wrapped(x), network()(x))


def test_a_wrong_size_is_one_line():
    with pytest.raises(UserError, match=r"failed on images of 3x32x32 with .*\. Scale them\.$") as caught:
        as_logits(build_fixed_size(), torch.zeros(2, 3, 32, 32), advice="Scale them.")
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_rows_are_refused():
    with pytest.raises(UserError, match=re.escape("a row of numbers for each image, got (2, 4, 32, 32)")):
        as_logits(torch.nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 32, 32))


def test_a_checkpoint_may_call_what_is_named(tmp_path):
    metadata = {"arm": "batch_norm", "network": f"{GIVEN}:make", "depth": "6", "widths": "4"}
    model = build_network(f"{GIVEN}:make", arm="batch_norm", depth=6, widths=(4,), classes=10, seed=0)
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), metadata)
    with pytest.raises(UserError, match=f"If you trust it, add --code {GIVEN}:make$"):
        load_source(str(tmp_path / "a.safetensors"), weights=None)
    found = load_source(str(tmp_path / "a.safetensors"), weights=None, code=[f"{GIVEN}:make"])
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(found.model(x), model.eval()(x)) and found.name == f"{GIVEN}:make with batch norm"
