"""``steadynorm adapt``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from steadynorm import cli
from steadynorm.adaptation import Adapted
from tests.support.adaptation import blob_network, deep_blob_network, in_runs

MODEL = "tests.support.adaptation:deep_blob_network"


def save(path: Path, x: torch.Tensor, labels: torch.Tensor | None) -> str:
    np.savez(path, x=x.numpy(), **({} if labels is None else {"y": labels.numpy()}))
    return str(path)


def mixed(count: int, *, seed: int, shifted: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    x, labels = in_runs(count, seed=seed, shifted=shifted)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return x[order], labels[order]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("data") / "clean.npz", *mixed(800, seed=2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("data") / "runs.npz", *in_runs(600, seed=7))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit status, standard output and standard error of a command."""

    def of(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(("adapt", *arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return of


def test_each_batch_is_a_line_and_accuracies_end_them(run: Any, runs: str, clean: str) -> None:
    status, out, _ = run(MODEL, "--data", runs, "--clean", clean, "--batch-size", "60")
    assert status == 0
    lines = out.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert [line[:12] for line in lines[:10]] == [f"batch {number:>4}  " for number in range(1, 11)]
    assert all(" without" in line and "accuracy" in line for line in lines[:10])
    assert "by tracked, in runs" in lines[9]
    assert lines[10].startswith("10 batches: ")
    assert lines[11].startswith("Accuracy ") and lines[11].endswith(" without.")
    assert lines[12] == "Stream: 600 samples of runs.npz in batches of 60, as they are. In their order."
    assert lines[13] == "Clean: 800 samples of clean.npz in batches of 100, as they are."


def test_json_has_the_accuracies_of_both(run: Any, runs: str, clean: str, tmp_path: Path) -> None:
    status, out, _ = run(MODEL, "--data", runs, "--clean", clean, "--batch-size", "60", "--json")
    found = json.loads(out)
    x, labels = in_runs(600, seed=7)
    stored = float((deep_blob_network()(x).argmax(1) == labels).double().mean())
    assert status == 0
    assert found["accuracy"]["stored"] == pytest.approx(stored)
    assert found["accuracy"]["adapted"] > stored + 0.1
    assert [each["samples"] for each in found["batches"]] == [60] * 10
    assert (
        run(MODEL, "--data", runs, "--clean", clean, "--batch-size", "60", "--json", str(tmp_path / "a.json"))[0] == 0
    )
    assert json.loads((tmp_path / "a.json").read_text())["batches"] == found["batches"]


def test_the_gate_that_is_saved_goes_on(run: Any, runs: str, clean: str, tmp_path: Path) -> None:
    file = tmp_path / "gate.safetensors"
    flags = (MODEL, "--data", runs, "--batch-size", "60", "--batches", "10")
    assert run(*flags, "--clean", clean, "--save", str(file))[0] == 0
    assert Adapted.load(deep_blob_network(), file).method.order.is_ordered
    status, out, _ = run(*flags, "--gate", str(file))
    assert status == 0
    assert "by tracked, in runs" in out.splitlines()[0]
    status, _, err = run(*flags, "--clean", clean, "--save", str(file))
    assert (status, err) == (2, f"steadynorm: --save: {file} exists already. Give a new file.\n")


def test_without_clean_data_half_of_the_stream_is_taken_for_them(run: Any, clean: str) -> None:
    status, out, _ = run(MODEL, "--data", clean, "--batch-size", "60")
    assert status == 0
    assert "Clean: 400 samples of the stream at random, taken for clean; see --clean." in out
    assert sum(line.startswith("batch ") for line in out.splitlines()) == 7  # of the other 400


def test_without_labels_decisions_are_shown_alone(run: Any, clean: str, tmp_path: Path) -> None:
    data = save(tmp_path / "a.npz", mixed(120, seed=5)[0], None)
    status, out, _ = run(MODEL, "--data", data, "--clean", clean, "--batch-size", "60")
    assert status == 0
    assert out.splitlines()[0] == "batch    1  by stored"
    assert "ccuracy" not in out


def test_folders_of_classes_are_shuffled_unless_their_order_is_meant(run: Any, tmp_path: Path) -> None:
    for label in range(3):
        (tmp_path / "d" / str(label)).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (80 * label, 9 * number, 0)).save(tmp_path / "d" / str(label) / f"{number}.png")
    flags = ("tests.checkup.test_adapt:of_colours", "--data", str(tmp_path / "d"), "--input-size", "8", "8")
    for order, told in (((), "Shuffled."), (("--order", "given"), "In their order.")):
        status, out, _ = run(*flags, *order, "--batch-size", "2")
        assert status == 0
        assert told in out


def of_colours() -> torch.nn.Module:
    """Tells three reds apart."""
    norm, linear = torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-5.0, 0, 0], [0, 0, 0], [5, 0, 0]]))
        linear.bias.copy_(torch.tensor([-2.0, 0, -2]))
        norm.running_mean[0] = -0.75
    return torch.nn.Sequential(norm, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear).eval()


def wordy() -> torch.nn.Module:
    """Gives its logits in a tuple."""

    class Wordy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = blob_network()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
            return self.inner(x), "as asked"

    return Wordy().eval()


def normless() -> torch.nn.Module:
    """Has no batch norm, and tells classes apart by the highest channel."""
    return blob_network()[1:]


def test_logits_in_a_tuple_are_taken_out(run: Any, runs: str, clean: str) -> None:
    assert run("tests.checkup.test_adapt:wordy", "--data", runs, "--clean", clean)[0] == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "give the model: PACKAGE.MODULE:FUNCTION that builds it, or a checkpoint."),
        ((MODEL,), "--data: give the stream: cifar10, a directory of images, or an .npz file."),
        ((MODEL, "--data", "DATA", "--batch-size", "0"), "--batch-size: must be at least 1, got 0."),
        (
            (MODEL, "--data", "DATA", "--clean", "DATA", "--gate", "a"),
            "--clean: calibrates a new gate, and --gate loads",
        ),
        ((MODEL, "--data", "DATA", "--save", "gate.pt"), "--save: must name a .safetensors file, got gate.pt."),
        ((MODEL, "--data", "DATA", "--gate", "none.safetensors"), "--gate: none.safetensors: there is no such file."),
        ((MODEL, "--data", "DATA", "--gate", "DATA"), "--gate: Adapted.load: "),
        ((MODEL, "--data", "none.npz"), "--data: none.npz: there is no such file."),
        ((MODEL, "--data", "BARE"), "--clean: give labelled data that the model is good on; --data have no labels."),
        ((MODEL, "--data", "DATA", "--clean", "BARE"), "--clean: must have labels, got none in "),
        (("tests.checkup.test_adapt:normless", "--data", "DATA"), "--clean: "),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(
    run: Any, runs: str, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    bare = save(tmp_path / "bare.npz", mixed(60, seed=5)[0], None)
    status, out, err = run(*(flag.replace("DATA", runs).replace("BARE", bare) for flag in flags))
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"steadynorm: {told}")
    assert "Traceback" not in err
