"""Surgery on models of timm and torchvision: the record of docs/zoo.md, and the real packages where they are."""

import importlib
import json
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.deploy import check_ready
from steadynorm.reporting.failure import UserError
from steadynorm.surgery import convert_, fold_, freeze_, from_sync_, recalibrate_, to_torch_, unfreeze_
from tests.support.foreign import chain
from tests.support.layers import drawn
from tests.support.zoo import RECORD, TIMM, TORCHVISION, build, rows, study

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
MODELS = [("timm", name) for name in TIMM] + [("torchvision", name) for name in TORCHVISION]
X = drawn(5, 3, 6, 6)


def check(found):
    """What must hold of every model."""
    assert found["norms"] > 0
    assert found["converted"]["changed"] == found["norms"]
    assert found["folded"]["changed"] + len(found["folded"]["refused"]) == found["norms"]
    for each in (found["converted"], found["folded"]):
        assert each["difference"] < 1e-10
        assert each["undone"]


def test_the_page_shows_the_record():
    record = json.loads(RECORD.read_text())
    page = PAGE.read_text()
    assert [line for line in page.splitlines() if line.startswith(("| timm", "| torchvision"))] == rows(record)
    versions = record["versions"]
    assert f"torch {versions['torch']}, torchvision {versions['torchvision']}, timm {versions['timm']}" in page


def test_the_record_has_every_model_and_nothing_went_wrong():
    record = json.loads(RECORD.read_text())
    assert [(each["package"], each["model"]) for each in record["models"]] == MODELS
    for each in record["models"]:
        check(each)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "name"), MODELS, ids=lambda each: each)
def test_a_model_of_the_record_goes_through_again(package, name):
    pytest.importorskip(package)
    check(study(package, name))


@pytest.mark.parametrize("act", ["ReLU", "Hardswish", "SiLU", "GELU", "Identity", "PReLU"])
@pytest.mark.parametrize("kind", ["BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d"])
def test_timms_own_norm_goes_through_the_verbs(kind, act):
    layers = pytest.importorskip("timm.layers.norm_act")

    def norm(channels):
        made = layers.BatchNormAct2d(channels, eps=1e-3, act_layer=getattr(nn, act), drop_layer=nn.Dropout)
        if kind == "SyncBatchNormAct":
            return layers.convert_sync_batchnorm(made)
        return layers.freeze_batch_norm_2d(made) if kind == "FrozenBatchNormAct2d" else made

    assert type(norm(3)).__name__ == kind
    for verb in (
        lambda model: convert_(model, "batch_norm"),
        lambda model: fold_(model, X),
        to_torch_,
        freeze_ if kind != "FrozenBatchNormAct2d" else unfreeze_,
        lambda model: from_sync_(model, example=X),
    ):
        model = chain(norm)
        expected = model(X)
        change = verb(model)
        torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
        change.undo()
        assert torch.equal(model(X), expected)


def test_torchvisions_own_frozen_norm_folds():
    ops = pytest.importorskip("torchvision.ops")
    model = chain(ops.FrozenBatchNorm2d)
    expected = model(X)
    assert len(fold_(model, X).changed) == 2
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)


def test_recalibration_moves_as_many_variances_as_torchs_update_bn():
    timm = pytest.importorskip("timm")
    moved = []
    torchs = torch.optim.swa_utils.update_bn
    for verb in (lambda model, x: torchs([x], model), lambda model, x: recalibrate_(model, [x])):
        torch.manual_seed(0)
        model = timm.create_model("mobilenetv3_small_050", pretrained=False)
        verb(model, torch.randn(4, 3, 64, 64))
        variances = [each for name, each in model.named_buffers() if name.endswith("running_var")]
        moved.append(sum(not torch.equal(each, torch.ones_like(each)) for each in variances))
    assert moved == [34, 34]


def test_a_timm_net_with_statistics_at_their_start_is_not_ready():
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", pretrained=False).eval()
    with pytest.raises(UserError, match=r"bn1 \(timm.*BatchNormAct2d\(16\)\): its statistics were never"):
        check_ready(model)
    assert check_ready(build("timm", "mobilenetv3_small_050")[0]) == 34


@pytest.mark.parametrize("name", ["convert_sync_batchnorm", "freeze_batch_norm_2d"])
def test_timm_is_refused_a_fused_activation(name):
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), steadynorm.BatchNorm2d(4, activation="relu"))
    with pytest.raises(TypeError, match=rf"a layer rebuilt by {name} must fuse no activation"):
        getattr(layers, name)(model)


@pytest.mark.slow
def test_every_frozen_norm_of_transformers_folds():
    models = pytest.importorskip("transformers.models")
    pytest.importorskip("torchvision")  # which some of them import
    found = 0
    for package in pkgutil.iter_modules(models.__path__):
        for file in sorted(Path(models.__path__[0]).joinpath(package.name).glob("modeling_*.py")):
            if "FrozenBatchNorm2d(nn.Module)" not in file.read_text(encoding="utf-8"):
                continue
            module = importlib.import_module(f"transformers.models.{package.name}.{file.stem}")
            (cls,) = (value for key, value in vars(module).items() if key.endswith("FrozenBatchNorm2d"))
            model = chain(cls)
            expected = model(X)
            assert len(fold_(model, X).changed) == 2, cls
            torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
            found += 1
    assert found >= 14
