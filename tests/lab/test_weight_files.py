"""Files as people have them: each is read, and one line says how, or one line says what it is and what to do."""

import argparse
import datetime
import gzip
import io
import json
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from steadynorm.lab.weights import load_weights, read_weights
from steadynorm.reporting.failure import UserError


def network(classes=3, *, seed=0):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.num_batches_tracked.fill_(seed)
    parts = {"conv": nn.Conv2d(1, 4, 3, bias=False), "bn": norm, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts | {"fc": nn.Linear(4, classes)})).eval()


TRAINED, OTHER = network(seed=1), network(seed=2)
STATE, OTHERS = TRAINED.state_dict(), OTHER.state_dict()


def behind(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


def in_dtype(dtype):
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in STATE.items()}


def without(*ends):
    return {name: each for name, each in STATE.items() if not name.endswith(ends)}


def optimizer():
    """The state of one that has made a step."""
    model = network()
    made = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 1, 4, 4)).sum().backward()
    made.step()
    return made.state_dict()


PARAMETERS = [each.detach() for each in TRAINED.parameters()]
SHADOW = {"decay": 0.999, "num_updates": 10, "shadow_params": PARAMETERS, "collected_params": None}  # torch_ema's
TIMM = {"epoch": 3, "arch": "resnet18", "args": argparse.Namespace(lr=1), "optimizer": optimizer(), "metric": 0.5}
LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.6.0",
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    "optimizer_states": [optimizer()],
    "hyper_parameters": {"lr": 0.1},
}
SCORE = "passed over beside them: callbacks.ModelCheckpoint{'monitor': None}.best_model_score"
READ = "8 of the model's 8 tensors read"


def stripped(prefix):
    return f"{READ}; names are taken without {prefix!r}"


UNDERSTOOD = {
    "state dict": (STATE, f"{READ}."),
    "of Parameters": ({n: nn.Parameter(t) if t.is_floating_point() else t for n, t in STATE.items()}, f"{READ}."),
    "state_dict": ({"state_dict": STATE, "epoch": 3}, f"{stripped('state_dict.')}."),
    "model": (
        {"model": STATE, "optimizer": optimizer()},
        f"{stripped('model.')}; passed over beside them: optimizer.* (15 tensors).",
    ),
    "model_state_dict": ({"model_state_dict": STATE, "loss": 0.4}, f"{stripped('model_state_dict.')}."),
    "net": ({"net": STATE, "acc": 95.1}, f"{stripped('net.')}."),
    "ema": ({"ema": STATE}, f"{stripped('ema.')}."),
    "ema_state_dict": ({"ema_state_dict": STATE}, f"{stripped('ema_state_dict.')}."),
    "an ema that is the model": (
        {"model": STATE, "ema": deepcopy(STATE)},
        f"{stripped('model.')}; passed over beside them: ema.* (8 tensors).",
    ),
    "timm": (TIMM | {"state_dict": STATE}, stripped("state_dict.")),
    "Lightning": (LIGHTNING | {"state_dict": behind("model.")}, f"{stripped('state_dict.model.')}; {SCORE}."),
    "Lightning, net": (LIGHTNING | {"state_dict": behind("net.")}, f"{stripped('state_dict.net.')}; {SCORE}."),
    "Lightning, own name and a loss": (
        LIGHTNING | {"state_dict": behind("resnet18.") | {"loss.a": torch.ones(3), "loss.b": torch.ones(3)}},
        f"{stripped('state_dict.resnet18.')}; {SCORE}, state_dict.loss.a, state_dict.loss.b.",
    ),
    "Lightning, compiled": (
        LIGHTNING | {"state_dict": behind("model._orig_mod.")},
        f"{stripped('state_dict.model._orig_mod.')}; {SCORE}.",
    ),
    "DDP": (behind("module."), f"{stripped('module.')}."),
    "compiled, then DDP": (behind("module._orig_mod."), f"{stripped('module._orig_mod.')}."),
    "accelerate": (behind("_orig_mod.module."), f"{stripped('_orig_mod.module.')}."),
    "FSDP": (behind("_fsdp_wrapped_module."), f"{stripped('_fsdp_wrapped_module.')}."),
    "AveragedModel": (
        AveragedModel(TRAINED).state_dict(),
        f"{stripped('module.')}; passed over beside them: n_averaged.",
    ),
    "a model beside an average without names": (
        {"model": STATE, "ema": SHADOW},
        f"{stripped('model.')}; passed over beside them: ema.shadow_params (5 tensors without names).",
    ),
    "half": (in_dtype(torch.float16), f"{READ}; stored there in float16."),
    "bfloat16": (in_dtype(torch.bfloat16), f"{READ}; stored there in bfloat16."),
    "float64": (in_dtype(torch.float64), f"{READ}."),
    "no counters": (
        without("num_batches_tracked"),
        "7 of the model's 8 tensors read; not there: bn.num_batches_tracked.",
    ),
    "more keys": (STATE | {"bn.window": torch.ones(4)}, f"{READ}; not in the model, so left: bn.window."),
    "what scripts keep": (
        {
            "state_dict": STATE,
            "torch": torch.__version__,
            "date": datetime.datetime(2026, 1, 2),
            "args": types.SimpleNamespace(lr=1),
        },
        f"{stripped('state_dict.')}.",
    ),
}


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_weights_of_others_are_read_and_a_line_says_how(tmp_path, kind):
    content, told = UNDERSTOOD[kind]
    torch.save(content, tmp_path / "a.pth")
    model = network()
    said = load_weights(model, tmp_path / "a.pth")
    assert said.startswith(f"{tmp_path / 'a.pth'}: {told}") and "\n" not in said
    absent = ["bn.num_batches_tracked"] if kind == "no counters" else []
    for name, tensor in model.state_dict().items():
        close = {"rtol": 1e-2, "atol": 1e-3} if kind in ("half", "bfloat16") else {"rtol": 0, "atol": 0}
        assert name in absent or tensor.dtype == STATE[name].dtype
        torch.testing.assert_close(tensor, network().state_dict()[name] if name in absent else STATE[name], **close)


TWO = {
    "timm": (TIMM | {"state_dict": STATE, "state_dict_ema": OTHERS}, "state_dict", "state_dict_ema"),
    "ema": ({"model": STATE, "ema": OTHERS}, "model", "ema"),
    "ema_state_dict": ({"model_state_dict": STATE, "ema_state_dict": OTHERS}, "model_state_dict", "ema_state_dict"),
    "in Lightning": (
        LIGHTNING | {"state_dict": behind("model.") | behind("ema_model.module.", OTHERS)},
        "state_dict.model",
        "state_dict.ema_model",
    ),
    "MoCo": (
        {"state_dict": behind("module.encoder_q.") | behind("module.encoder_k.", OTHERS)},
        "state_dict.encoder_q",
        "state_dict.encoder_k",
    ),
    "DINO": (
        {"student": behind("module.backbone."), "teacher": behind("backbone.", OTHERS)},
        "student.backbone",
        "teacher.backbone",
    ),
}


@pytest.mark.parametrize("kind", TWO)
def test_of_two_models_that_differ_the_keys_are_named_and_choose(tmp_path, kind):
    content, first, second = TWO[kind]
    torch.save(content, tmp_path / "a.pth")
    told = f"several that differ: {first}, {second}. Choose one of them with --weights-key."
    with pytest.raises(UserError) as caught:
        load_weights(network(), tmp_path / "a.pth")
    assert str(caught.value).endswith(told)
    for key, state in ((first, STATE), (second, OTHERS)):
        model = network()
        load_weights(model, tmp_path / "a.pth", key=key)
        assert torch.equal(model.fc.weight, state["fc.weight"])


def zipped(*names, content=b"some"):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return made.getvalue()


def tarred(*names):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return made.getvalue()


def saved(content, **how):
    made = io.BytesIO()
    torch.save(content, made, **how)
    return made.getvalue()


def arrays():
    made = io.BytesIO()
    np.savez(made, **{name: each.numpy() for name, each in STATE.items()})
    return made.getvalue()


COPY = "Copy or download it again."
UNPACK = "Unpack it, and give the file of weights in it."
GIVE = "Give what torch.save or safetensors wrote."
ALONE = "Save the weights alone: torch.save(model.state_dict(), path)."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NAMES = "the checkpoint must have tensors by the model's names, conv.weight, bn.weight, bn.bias, ... (8 in all), got "

REFUSED = {
    "empty": (b"", f"is empty. {COPY}"),
    "zeros": (bytes(4096), f"begins with zeros alone, so it was not written to its end. {COPY}"),
    "cut off": (saved(STATE)[:-100], f"is cut off: its end is missing. {COPY}"),
    "git-lfs": (LFS, "is a pointer of git-lfs in place of the file. Run git lfs pull where it was cloned."),
    "web page": (
        b"<!DOCTYPE html>\n<html><title>404</title></html>",
        "is a web page instead of the file. Open the page, and download the file that it links to.",
    ),
    "JSON": (b'{"error": "gone"}', f'is text that begins with \'{{"error": "gone"}}\'. {GIVE}'),
    "gzip": (gzip.compress(saved(STATE)), f"is compressed by gzip. {UNPACK}"),
    "zip": (zipped("run/best.pth", "run/log.txt"), f"is a zip archive of run/best.pth and run/log.txt. {UNPACK}"),
    "tar": (tarred("a", "b", "c", "d", "e"), f"is a tar archive of a, b, c and more. {UNPACK}"),
    "torch 0.1": (tarred("sys_info", "pickle", "tensors", "storages"), "is a file of torch before 0.1.11, which is "),
    "npz": (arrays(), "is an .npz file of NumPy. Save it as safetensors: safetensors.numpy.save_file(dict("),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), f"is an HDF5 file, as Keras writes it. {GIVE}"),
    "ONNX": (
        b"\x08\x0a\x12\x07pytorch\x1a\x032.1" + bytes(99),
        f"is an ONNX graph, which does not keep the model's names. {GIVE}",
    ),
    "pickle": (
        pickle.dumps({"a": 1}),
        f"is no file of weights, or not a whole one (its pickle is not torch's). {GIVE}",
    ),
    "whole module": (
        saved(TRAINED),
        f"holds more than tensors, torch.nn.modules.container.Sequential, and is not read, since that could run code. "
        f"{ALONE}",
    ),
    "module in it": (
        saved({"epoch": 1, "model": TRAINED}),
        f"holds more than tensors, torch.nn.modules.container.Sequential, and is not read, since that could run code. "
        f"{ALONE}",
    ),
    "NumPy's number": (
        saved({"state_dict": STATE, "best": np.float64(1)}),
        f"holds more than tensors, numpy._core.multiarray.scalar, and is not read, since that could run code. {ALONE}",
    ),
    "optimizer": (
        saved({"optimizer": optimizer()}),
        f"{NAMES}only an optimizer's state, optimizer.state.0.step, optimizer.state.0.exp_avg, "
        "optimizer.state.0.exp_avg_sq, ... (15 in all). Give the file with the weights.",
    ),
    "torch_ema": (
        saved(SHADOW),
        f"{NAMES}shadow_params (5 tensors without names). Copy them into the model's parameters with the tool that "
        "wrote them, and save its state dict.",
    ),
    "list": (
        saved(PARAMETERS),
        "must hold a state dict, got 5 tensors without names. Copy them into the model's parameters with the tool that "
        "wrote them, and save its state dict.",
    ),
    "number": (saved(3), "must hold a state dict, got int."),
    "another model": (
        saved({"layer1.0.weight": torch.ones(2)}),
        f"{NAMES}layer1.0.weight. Rename its keys, or build the model that it was saved from.",
    ),
    "other classes": (
        saved({"model": network(7).state_dict()}),
        "does not fit the model: fc.weight has shape (7, 4), the model's (3, 4); fc.bias has shape (7,), the model's "
        "(3,). Build the model for 7 outputs there, and change that layer after it is loaded.",
    ),
    "other channels": (
        saved(STATE | {"conv.weight": torch.ones(4, 3, 3, 3)}),
        "does not fit the model: conv.weight has shape (4, 3, 3, 3), the model's (4, 1, 3, 3). Build the model as it "
        "was when they were saved.",
    ),
    "complex": (
        saved(STATE | {"fc.bias": torch.ones(3, dtype=torch.complex64)}),
        "does not fit the model: fc.bias is torch.complex64, the model's torch.float32. Build the model as it ",
    ),
    "no statistics": (
        saved(without("running_mean", "running_var", "num_batches_tracked")),
        "does not fit the model: bn.running_mean is missing; bn.running_var is missing. steadynorm recalibrate "
        "measures them on images.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_weights_for_the_model_is_one_line(tmp_path, kind):
    content, told = REFUSED[kind]
    (tmp_path / "a.pth").write_bytes(content)
    model = network()
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "a.pth")
    assert str(caught.value).startswith(f"--weights: {tmp_path / 'a.pth'}: {told}")
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith((".", ")"))
    assert all(torch.equal(each, network().state_dict()[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("kind", ["empty", "cut off", "git-lfs", "web page"])
def test_a_name_of_safetensors_does_not_hide_what_a_file_is(tmp_path, kind):
    content, told = REFUSED[kind]
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "a.safetensors")
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_torch_saved_is_read_under_a_name_of_safetensors_and_in_the_old_format(tmp_path, how):
    (tmp_path / "a.safetensors").write_bytes(saved(STATE, **how))
    assert read_weights(tmp_path / "a.safetensors").keys() == STATE.keys()


def test_a_program_of_torch_export_says_what_to_do(tmp_path):
    torch.export.save(torch.export.export(TRAINED, (torch.ones(2, 1, 4, 4),)), tmp_path / "a.pt2")
    with pytest.raises(UserError, match=r"is a program that torch\.export wrote\. Save its weights: torch\.save\("):
        read_weights(tmp_path / "a.pt2")


def sharded(place, *, first="model-00001-of-00002.safetensors"):
    names = list(STATE)
    files = {first: names[:3], "model-00002-of-00002.safetensors": names[3:]}
    for file, inside in files.items():
        save_file({name: STATE[name] for name in inside}, place / file)
    index = {"metadata": {}, "weight_map": {name: file for file, inside in files.items() for name in inside}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


FOLDERS = {
    "model.safetensors": lambda place: save_file(STATE, place / "model.safetensors"),
    "pytorch_model.bin": lambda place: torch.save(STATE, place / "pytorch_model.bin"),
    "model.safetensors.index.json": sharded,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_hugging_face_is_read_and_its_file_named(tmp_path, name):
    FOLDERS[name](tmp_path)
    (tmp_path / "config.json").write_text("{}")
    torch.save(optimizer(), tmp_path / "optimizer.pt")
    for path in (tmp_path, tmp_path / name):
        model = network()
        assert load_weights(model, path) == f"{tmp_path / name}: {READ}."
        assert all(torch.equal(each, STATE[key]) for key, each in model.state_dict().items())


def test_a_folder_without_such_a_file_says_what_to_give(tmp_path):
    for build, told in (
        (lambda: None, "without weights: none of model.safetensors, pytorch_model.bin and files that end in "),
        (lambda: _checkpoints(tmp_path), "Give one in it: checkpoint-1, checkpoint-2"),
        (lambda: torch.save(STATE, tmp_path / "best.pth"), "Give one in it: best.pth"),
        (lambda: _distributed(tmp_path), "of torch.distributed.checkpoint. Make one file of it: python -m torch."),
    ):
        build()
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path)
        assert str(caught.value).startswith(f"--weights: {tmp_path}: is a directory ") and told in str(caught.value)


def _checkpoints(place):
    for number in (1, 2):
        (place / f"checkpoint-{number}").mkdir()
        save_file(STATE, place / f"checkpoint-{number}" / "model.safetensors")


def _distributed(place):
    for name in (".metadata", "__0_0.distcp"):
        (place / name).write_bytes(b"a")


def test_shards_that_are_absent_or_elsewhere_are_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    sharded(tmp_path / "run")
    (tmp_path / "run" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r": model-00002-of-00002\.safetensors of 2 shards must lie beside it\.$"):
        read_weights(tmp_path / "run")
    sharded(tmp_path / "run", first="../outside.safetensors")
    with pytest.raises(UserError, match=r"is no index of shards, with a weight_map .*in another folder"):
        read_weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is no index of shards, with a weight_map"):
        read_weights(tmp_path / "run")
