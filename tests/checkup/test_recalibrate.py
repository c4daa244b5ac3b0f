"""``steadynorm recalibrate``: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from steadynorm import cli
from steadynorm.checkup.recalibrate import _moved
from steadynorm.lab.checkpoint import load_checkpoint
from steadynorm.surgery import recalibrate_
from tests.support.adaptation import blobs, deep_blob_network
from tests.support.deploy import save_checkpoint

MODEL = "tests.support.adaptation:deep_blob_network"
BARE = "tests.checkup.test_recalibrate:bare"


def bare() -> nn.Module:
    """With statistics of other data, as an average of weights that took its model's over."""
    model = deep_blob_network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.running_mean.copy_(torch.linspace(0, 3, 6))
    return model


def normless() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6)).eval()


def half() -> nn.Module:
    return bare().bfloat16()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    x, labels = blobs(500, seed=2)
    path = tmp_path_factory.mktemp("data") / "a.npz"
    np.savez(path, x=x.numpy(), y=labels.numpy())
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit status, standard output and standard error of a command."""

    def of(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(("recalibrate", *arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out.replace("\N{NO-BREAK SPACE}", " "), printed.err

    return of


def test_an_average_of_weights_gets_statistics_of_its_own(run: Any, data: str, tmp_path: Path) -> None:
    """The file has the average's parameters alone; what is written has all that the model has, by its names."""
    trained = deep_blob_network()
    parameters = {f"module.{name}": each.detach() for name, each in trained.named_parameters()}
    torch.save({"ema": parameters, "epoch": 3}, tmp_path / "ema.pth")
    out = tmp_path / "a.safetensors"
    status, printed, _ = run(BARE, "--weights", str(tmp_path / "ema.pth"), "--data", data, "--save", str(out))
    assert status == 0
    written = load_file(out)
    assert written.keys() == trained.state_dict().keys()
    assert all(torch.equal(written[name], each) for name, each in trained.named_parameters())
    for name in ("0.running_mean", "0.running_var", "2.running_mean", "2.running_var"):
        torch.testing.assert_close(written[name], trained.state_dict()[name], rtol=0.1, atol=0.05)
    lines = printed.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["layer", "channels"], ["0", "6"], ["2", "6"]]
    assert lines[3].startswith("2 layers measured on 400 images in 3 passes, standard error at most ")
    before, after = (float(number) for number in re.findall(r"([\d.]+) %", lines[4]))
    assert after > before + 20
    assert lines[4].endswith(" after, on 100 other images of them.")
    assert "\nDrawn: 500 samples of a.npz in batches of 100, as they are. Statistics: of 400 of them.\n" in printed
    assert "not there: 0.running_mean, 0.running_var" in printed
    assert lines[-1] == f"Written: {out}"


def test_the_statistics_are_those_of_the_verb(run: Any, data: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    arrays = np.load(data)
    np.savez(tmp_path / "unlabelled.npz", x=arrays["x"])
    status, printed, _ = run(BARE, "--data", str(tmp_path / "unlabelled.npz"), "--images", "500", "--save", str(out))
    assert status == 0
    expected = bare()
    recalibrate_(expected, torch.from_numpy(arrays["x"]).split(100))
    for name, tensor in load_file(out).items():
        torch.testing.assert_close(tensor, expected.state_dict()[name])
    assert "\nStatistics: 500 samples of unlabelled.npz in batches of 100, as they are.\n" in printed
    assert "Accuracy is not measured: there are no labels of the model's classes." in printed


def test_the_table_says_how_far_each_layer_moved(run: Any, data: str, tmp_path: Path) -> None:
    _, printed, _ = run(BARE, "--data", data, "--save", str(tmp_path / "a.safetensors"), "--json")
    found = json.loads(printed)
    x, _ = blobs(500, seed=2)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    first = found["layers"][0]
    assert (first["layer"], first["channels"]) == ("0", 6)
    assert first["mean"] == pytest.approx(
        float(((mean - torch.linspace(0, 3, 6)).square() / var).mean().sqrt()), rel=0.1
    )
    assert first["var"] == pytest.approx(float(var.log().mean().exp()), rel=0.1)
    assert found["accuracy"]["after"] > found["accuracy"]["before"]
    assert found["measured"]["samples"] == 400 and found["file"] == str(tmp_path / "a.safetensors")


def test_statistics_that_were_no_numbers_have_no_distance() -> None:
    old = {"running_mean": torch.tensor([float("nan")]), "running_var": torch.tensor([0.0])}
    moved = _moved("", old, {"running_mean": torch.ones(1), "running_var": torch.ones(1)})
    assert (moved.layer, moved.mean, moved.var) == ("(the model)", None, None)


def test_half_precision_is_written_as_float32(run: Any, data: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    assert run("tests.checkup.test_recalibrate:half", "--data", data, "--save", str(out))[0] == 0
    assert {each.dtype for each in load_file(out).values()} == {torch.float32, torch.int64}


def test_of_a_checkpoint_of_an_experiment_comes_another(run: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors")
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "a.npz", x=images.numpy())
    out = tmp_path / "b.safetensors"
    flags = ("--data", str(tmp_path / "a.npz"), "--images", "40", "--batch-size", "20", "--save", str(out))
    assert run(str(tmp_path / "a.safetensors"), *flags)[0] == 0
    assert load_checkpoint(out).network == load_checkpoint(tmp_path / "a.safetensors").network
    with safe_open(out, "pt") as new, safe_open(tmp_path / "a.safetensors", "pt") as old:
        assert new.metadata() == old.metadata()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "give the model: PACKAGE.MODULE:FUNCTION that builds it, or a checkpoint."),
        ((MODEL,), "--data: give training images: "),
        ((MODEL, "--data", "DATA"), "--save: give the new .safetensors file to write."),
        ((MODEL, "--data", "DATA", "--save", "a.pth"), "--save: must name a .safetensors file, got a.pth."),
        ((MODEL, "--data", "DATA", "--save", "DATA"), "--save: must name a .safetensors file, got "),
        ((MODEL, "--data", "DATA", "--save", "NEW", "--images", "1"), "--images: must be at least 2, got 1."),
        ((MODEL, "--data", "none.npz", "--save", "NEW"), "--data: none.npz: there is no such file."),
        ((MODEL, "--data", "DATA", "--save", "NEW", "--weights-key", "ema"), "--weights-key: says where to look"),
        (
            ("tests.support.deploy:build_model", "--data", "DATA", "--save", "NEW"),
            "--data: the model failed on an ",
        ),
        (("tests.checkup.test_recalibrate:normless", "--data", "DATA", "--save", "NEW"), "the model must have a batch"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_no_file(
    run: Any, data: str, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    new = tmp_path / "new.safetensors"
    status, out, err = run(*(flag.replace("DATA", data).replace("NEW", str(new)) for flag in flags))
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"steadynorm: {told}")
    assert ("failed on" in err) == err.endswith(" Give data with as many channels.\n")
    assert not new.exists()
