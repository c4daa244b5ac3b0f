import argparse
import os
import re
import zipfile
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from steadynorm.deploy.source import load_source
from steadynorm.lab import weight_files
from steadynorm.lab.weights import load_weights
from steadynorm.reporting.failure import UserError
from tests.support.deploy import network


def trained():
    """A network with random numbers of its own."""
    model = network()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(3 if not tensor.is_floating_point() else 0.25)
    return model


def prefixed(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def averaged(model):
    ema = AveragedModel(model)
    ema.n_averaged += 5
    return ema.state_dict()


FORMS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_acc1": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.tensor(0.5)},
    "ema": lambda state: {"ema": state},
    "parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled parallel": lambda state: {"state_dict": prefixed("_orig_mod.module.", state)},
    "lightning model": lambda state: {
        "state_dict": prefixed("model.", state),
        "pytorch-lightning_version": "2",
        "hyper_parameters": {"lr": 0.1},
    },
    "lightning net": lambda state: {"state_dict": prefixed("net.", state), "callbacks": {}},
    "with the script's arguments": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=1, out=Path("a"))},
    "averaged": lambda state: (
        {"module." + name: each for name, each in state.items()} | {"n_averaged": torch.tensor(5)}
    ),
}


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_the_forms_that_people_keep_them_in(tmp_path, form, ending):
    state = trained().state_dict()
    torch.save(FORMS[form](state), tmp_path / f"a{ending}")
    _check_loaded(tmp_path / f"a{ending}", state)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
@pytest.mark.parametrize("form", ["plain", "parallel", "compiled", "averaged"])
def test_safetensors_are_read_in_any_form_and_by_any_name(tmp_path, form, name):
    state = trained().state_dict()
    save_file(dict(FORMS[form](state)), tmp_path / name)
    _check_loaded(tmp_path / name, state)


def _check_loaded(path, state):
    model = network()
    told = load_weights(model, path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert told.startswith(f"{path}: {len(state)} of the model's {len(state)} tensors read") and "\n" not in told


def test_the_average_of_torch_is_read(tmp_path):
    model = trained()
    torch.save(averaged(model), tmp_path / "a.pt")
    _check_loaded(tmp_path / "a.pt", model.state_dict())


def test_how_the_names_were_understood_and_what_was_left_is_said(tmp_path):
    state = trained().state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    kept = {name: each for name, each in state.items() if name not in counters}
    kept["auxiliary.weight"] = torch.zeros(1)
    torch.save({"state_dict": prefixed("module.", kept), "epoch": torch.tensor(3)}, tmp_path / "a.pth")
    model = network()
    told = load_weights(model, tmp_path / "a.pth")
    assert told == (
        f"{tmp_path / 'a.pth'}: {len(kept) - 1} of the model's {len(state)} tensors read; "
        "names are taken without 'state_dict.module.'; passed over beside them: epoch; "
        f"not there: {', '.join(counters)}; not in the model, so left: auxiliary.weight."
    )
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in kept if name in state)


def test_a_source_says_what_was_read(tmp_path):
    torch.save({"model": trained().state_dict()}, tmp_path / "a.pt")
    found = load_source("tests.support.deploy:build_model", weights=tmp_path / "a.pt")
    assert found.weights.endswith("names are taken without 'model.'.")
    assert load_source("tests.support.deploy:build_model", weights=None).weights == ""


def test_of_several_weights_that_differ_one_must_be_chosen(tmp_path):
    first, second = network().state_dict(), trained().state_dict()
    torch.save({"state_dict": first, "state_dict_ema": second, "more": {"ema": second}}, tmp_path / "a.pth")
    model = network()
    with pytest.raises(
        UserError, match=r"several that differ: .*state_dict_ema.*Choose one of them with --weights-key\.$"
    ):
        load_weights(model, tmp_path / "a.pth")
    assert torch.equal(model.state_dict()["conv1.weight"], first["conv1.weight"])
    for key in ("state_dict_ema", "more.ema"):
        model = network()
        load_weights(model, tmp_path / "a.pth", key=key)
        assert torch.equal(model.state_dict()["conv1.weight"], second["conv1.weight"])
    for key, has in (("emma", "state_dict, state_dict_ema, more"), ("more.emma", "ema"), ("more.ema.x.y", "conv1")):
        with pytest.raises(UserError, match=rf"^--weights-key: .*a\.pth has no '{key}'\. At '.*' it has {has}"):
            load_weights(network(), tmp_path / "a.pth", key=key)


def test_within_a_chosen_part_the_same_flag_is_not_proposed_again(tmp_path):
    states = {"model": network().state_dict(), "ema": trained().state_dict()}
    torch.save({"best": states}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"several that differ: model, ema\. Choose one of them\.$"):
        load_weights(network(), tmp_path / "a.pth", key="best")


@pytest.mark.parametrize(("count", "rest"), [(3, ""), (5, " and 2 more")])
def test_three_tensors_that_do_not_fit_are_named(tmp_path, count, rest):
    state = trained().state_dict()
    needed = [name for name in state if not name.endswith("num_batches_tracked")][:count]
    torch.save({name: each for name, each in state.items() if name not in needed}, tmp_path / "a.pt")
    named = "; ".join(f"{name} is missing" for name in needed[:3])
    with pytest.raises(UserError, match=re.escape(f"does not fit the model: {named}{rest}. Build the model")):
        load_weights(network(), tmp_path / "a.pt")


class Hostile:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("kind", ["beside", "alone", "module", "numpy"])
def test_what_would_run_code_is_not_read(tmp_path, kind):
    state = trained().state_dict()
    content = {
        "beside": {"state_dict": state, "args": Hostile(tmp_path / "made")},
        "alone": Hostile(tmp_path / "made"),
        "module": trained(),
        "numpy": {"state_dict": state, "best": np.float64(0.5)},
    }
    torch.save(content[kind], tmp_path / "a.pt")
    model = network()
    before = deepcopy(model.state_dict())
    with pytest.raises(
        UserError, match=r"holds more than tensors, [\w.]+, and is not read.*Save the weights alone"
    ) as caught:
        load_weights(model, tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_directory_and_what_is_no_state_dict_are_one_line(tmp_path):
    torch.save([3], tmp_path / "a.pt")
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "b.pt")
    for name, why in (
        (".", "is a directory without model.safetensors and pytorch_model.bin. Give one in it: a.pt, b.pt"),
        ("a.pt", "must hold a state dict, got list."),
        ("b.pt", "the checkpoint must have tensors by the model's names, "),
    ):
        with pytest.raises(UserError, match=re.escape(why)) as caught:
            load_weights(network(), tmp_path / name)
        assert str(caught.value).startswith("--weights: ") and "\n" not in str(caught.value)


def test_half_precision_is_read_and_integers_are_not(tmp_path):
    state = {name: each.half() if each.is_floating_point() else each for name, each in trained().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    model = network()
    load_weights(model, tmp_path / "a.pt")
    assert model.state_dict()["conv1.weight"].dtype == torch.float32
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"].float())
    torch.save(state | {"conv1.weight": state["conv1.weight"].long()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"conv1\.weight is torch\.int64, the model's torch\.float32"):
        load_weights(model, tmp_path / "a.pt")


def test_torchscript_says_what_to_do(tmp_path):
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"is a TorchScript archive\. Save its weights: "):
        load_weights(network(), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("sparse", "classifier.weight is torch.sparse_coo, not dense"),
        ("meta", "classifier.weight is on the meta device, which holds no numbers"),
        ("nested", "classifier.weight is nested, not dense"),
    ],
)
def test_tensors_without_plain_numbers_are_refused_by_name(tmp_path, kind, why):
    state = trained().state_dict()
    weight = state["classifier.weight"]
    state["classifier.weight"] = {
        "sparse": weight.to_sparse(),
        "meta": weight.to("meta"),
        "nested": torch.nested.nested_tensor([weight[0], weight[1]], layout=torch.jagged),
    }[kind]
    model = network()
    before = deepcopy(model.state_dict())
    for content in (state, {"model": state, "ema": state}):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match=re.escape(why)):
            load_weights(model, tmp_path / "a.pt")
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_compressed_archive_is_refused_before_it_fills_memory(tmp_path):
    torch.save({"w": torch.zeros(2**25)}, tmp_path / "a.pt")
    bomb = tmp_path / "b.pt"
    with zipfile.ZipFile(tmp_path / "a.pt") as parts, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts.infolist():
            archive.writestr(part.filename, parts.read(part))
    with pytest.raises(UserError, match=r"got a compressed archive, [\d,]+ bytes in [\d,]+\. Save the weights again"):
        load_weights(network(), bomb)


def test_an_archive_as_torch_writes_it_is_read_at_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "COMPRESSED_BYTES", 0)
    torch.save(trained().state_dict(), tmp_path / "a.pt")
    assert "tensors read" in load_weights(network(), tmp_path / "a.pt")


def test_a_pipe_is_refused_in_place_of_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(UserError, match="must be an ordinary file"):
        load_weights(network(), tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "runs/a.ckpt", "pytorch_model.bin"])
def test_a_file_of_weights_alone_says_how_to_give_it(name):
    with pytest.raises(UserError, match=rf"^{name}: is not a checkpoint of an experiment.*:FUNCTION --weights {name}$"):
        load_source(name, weights=None)
