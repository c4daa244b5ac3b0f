import re

import pytest
import torch
from safetensors.torch import save_file

from steadynorm.lab import checkpoint
from steadynorm.lab.checkpoint import load_checkpoint
from steadynorm.lab.networks import build_network
from steadynorm.layers import batch_norm_state
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.run_directory import save_tensors
from tests.support.given_networks import HERE
from tests.support.layers import randomize_

METADATA = {"arm": "gated_batch_norm", "network": "cnn", "depth": "3", "widths": "4 8"}


def network(**changed):
    built = {"arm": "gated_batch_norm", "depth": 3, "widths": (4, 8), "classes": 10, "seed": 1} | changed
    return build_network("cnn", **built)


def saved(tmp_path, metadata=METADATA, **changed):
    model = randomize_(network(**changed))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith((".noise", ".confidence")):
                tensor.fill_(0.25)
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), metadata)
    return model


def test_a_network_comes_back_as_it_was(tmp_path):
    model = saved(tmp_path)
    found = load_checkpoint(tmp_path / "a.safetensors")
    assert (found.network, found.arm, found.depth, found.widths) == ("cnn", "gated_batch_norm", 3, (4, 8))
    assert not found.model.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.model(x), model.eval()(x))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.model.state_dict().items())


def test_a_network_of_other_images_comes_back(tmp_path):
    described = METADATA | {"classes": "7", "channels": "1", "image_size": "28 20"}
    model = saved(tmp_path, described, classes=7, channels=1, image_size=(28, 20))
    found = load_checkpoint(tmp_path / "a.safetensors")
    assert (found.classes, found.channels, found.image_size) == (7, 1, (28, 20))
    x = torch.randn(2, 1, 28, 20)
    assert torch.equal(found.model(x), model.eval()(x))


def test_a_checkpoint_of_version_0_1_is_of_ten_classes_of_small_photographs(tmp_path):
    saved(tmp_path)
    found = load_checkpoint(tmp_path / "a.safetensors")
    assert (found.classes, found.channels, found.image_size) == (10, 3, (32, 32))


def test_a_checkpoint_without_what_the_gate_has_learned_is_refused(tmp_path):
    model = saved(tmp_path)
    save_tensors(tmp_path / "a.safetensors", batch_norm_state(model.state_dict()), METADATA)
    with pytest.raises(UserError, match=r"are not those of cnn with gated_.*missing .*\.confidence, .*noise"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"b\.safetensors: there is no such file"):
        load_checkpoint(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"is a directory\. Give a \.safetensors file of a run's checkpoints\.$"):
        load_checkpoint(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_another_file_of_tensors_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": "100000000"}, r"\(100000000 convolutions, 26 tensors\)"),
        ({"widths": "4 1000000"}, r"\(conv3\.weight: shape \(8, 4, 3, 3\) in place of \(1000000, 4, 3, 3\)\)"),
        ({"widths": f"4 {10**17}"}, "is not a checkpoint"),
        ({"widths": "4 8 16 32 64 128"}, "is not a checkpoint .*one to 5"),
        ({"depth": "-1"}, "is not a checkpoint .*at least 2 convolutions"),
        ({"classes": "1000000000"}, r"\(classifier.weight: shape \(10, 8\) in place of \(1000000000, 8\)\)"),
        ({"channels": "-1"}, "is not a checkpoint"),
        ({"image_size": "1 32"}, "is not a checkpoint .*one to 0"),
        ({"image_size": "32"}, "is not a checkpoint"),
        ({"network": "resnet1001"}, "is not a checkpoint .*no network is called 'resnet1001'"),
        ({"arm": "nothing"}, "is not a checkpoint .*no normalization is called 'nothing'"),
    ],
    ids=str,
)
def test_metadata_of_a_network_that_the_tensors_do_not_make_is_refused_before_it_is_built(
    tmp_path, monkeypatch, changed, message
):
    saved(tmp_path, METADATA | changed)
    build, devices = checkpoint.build_network, []

    def spy(*arguments, **named):
        devices.append(torch.get_default_device().type)
        return build(*arguments, **named)

    monkeypatch.setattr(checkpoint, "build_network", spy)
    with pytest.raises(UserError, match=message) as refused:
        load_checkpoint(tmp_path / "a.safetensors")
    assert "\n" not in str(refused.value)
    assert set(devices) <= {"meta"}


@pytest.mark.parametrize("changed", [{"widths": (4, 4)}, {"arm": "batch_norm"}], ids=str)
def test_tensors_of_another_network_are_refused(tmp_path, changed):
    saved(tmp_path, **changed)
    with pytest.raises(UserError, match="its tensors are not those of cnn with gated_batch_norm"):
        load_checkpoint(tmp_path / "a.safetensors")


def given(tmp_path, network=f"{HERE}:make", arm=f"{HERE}:Scale,power=0.5", **shape):
    """Write the checkpoint of a network of the user's, and give the model."""
    shape = {"classes": 5, "channels": 1, "image_size": (12, 10)} | shape
    model = build_network(network, arm=arm, depth=6, widths=(4,), seed=1, **shape)
    size = " ".join(map(str, shape["image_size"]))
    numbers = {"classes": str(shape["classes"]), "channels": str(shape["channels"]), "image_size": size}
    metadata = METADATA | numbers | {"network": network, "arm": arm, "seed": "1"}
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), metadata)
    return model.eval()


CODE = (f"{HERE}:make", f"{HERE}:Scale", f"{HERE}:Looks")


@pytest.mark.parametrize("name", ["make", "Looks"])
@pytest.mark.parametrize("arm", ["batch_norm", "none", "as_built", f"half={HERE}:Scale,power=0.5"])
def test_a_network_of_the_users_comes_back(tmp_path, name, arm):
    model = given(tmp_path, f"{HERE}:{name}", arm)
    found = load_checkpoint(tmp_path / "a.safetensors", code=CODE)
    x = torch.randn(2, 1, 12, 10)
    assert torch.equal(found.model(x), model(x))
    assert (found.network, found.arm, found.classes) == (f"{HERE}:{name}", arm, 5)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ((), f"built by calling {HERE}:make and {HERE}:Scale. If you trust it, add --code {HERE}:make {HERE}:Scale"),
        (CODE[:1], f"built by calling {HERE}:Scale. If you trust it, add --code {HERE}:Scale"),
        (CODE[1:], f"built by calling {HERE}:make. If you trust it, add --code {HERE}:make"),
    ],
)
def test_code_that_a_file_names_is_called_where_the_user_has_named_it_too(tmp_path, monkeypatch, code, message):
    given(tmp_path)
    monkeypatch.setattr(checkpoint, "build_network", lambda *_, **__: pytest.fail("code was called"))
    with pytest.raises(UserError, match=re.escape(message)):
        load_checkpoint(tmp_path / "a.safetensors", code=code)


def test_a_checkpoint_whose_module_is_not_here_says_so(tmp_path):
    saved(tmp_path, METADATA | {"network": "gone.models:make", "arm": "none"})
    with pytest.raises(UserError, match=r"a\.safetensors: gone\.models: cannot be imported .*Run from a folder"):
        load_checkpoint(tmp_path / "a.safetensors", code=["gone.models:make"])


def test_tensors_of_another_network_of_the_users_are_refused_before_it_is_built(tmp_path, monkeypatch):
    given(tmp_path)
    other = METADATA | {"network": f"{HERE}:make", "arm": "batch_norm", "classes": "1000000000", "channels": "1"}
    save_tensors(tmp_path / "a.safetensors", given(tmp_path, arm="batch_norm").state_dict(), other)
    build, devices = checkpoint.build_network, []

    def spy(*arguments, **named):
        devices.append(torch.get_default_device().type)
        return build(*arguments, **named)

    monkeypatch.setattr(checkpoint, "build_network", spy)
    with pytest.raises(UserError, match=r"\(8\.weight: shape \(5, 32\) in place of \(1000000000, 32\)\)"):
        load_checkpoint(tmp_path / "a.safetensors", code=CODE)
    assert devices == ["meta"]
