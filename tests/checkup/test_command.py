"""``steadynorm doctor``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steadynorm import cli
from steadynorm.checkup.command import run_doctor
from steadynorm.checkup.config import DoctorConfig
from steadynorm.doctor import CHECKS, Diagnosis
from steadynorm.reporting.diagnosis import GIVEN_BY
from tests.support.doctor import batches, save_images, trained_network, wiped_network

HERE = "tests.support.doctor"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_images(tmp_path_factory.mktemp("data") / "images.npz"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit status, standard output and standard error of a command."""

    def of(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.main(("doctor", *arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return of


def accuracy(model: torch.nn.Module) -> float:
    with torch.no_grad():
        found = [(model.eval()(x).argmax(1) == y).float().mean() for x, y in batches()]
    return float(sum(found)) / len(found)


@pytest.mark.parametrize("columns", [40, 100])
def test_the_list_of_checks_is_whole_at_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main(("doctor", "--list"))
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert "…" not in printed and max(map(len, printed.splitlines())) <= columns
    assert all(name in printed for name in CHECKS)
    assert columns > 60 or all(" ".join(f"{name} {check.title}".split()) in words for name, check in CHECKS.items())


def test_a_healthy_model_is_three_lines_and_exit_status_0(run: Any, images: str) -> None:
    status, out, _ = run(f"{HERE}:trained_network", "--data", images, "--batch-size", "32")
    assert status == 0
    first, second, third = out.splitlines()
    assert first == "Healthy: no fault was found."
    assert second.startswith("Looked at 2 BatchNorm2d, in evaluation mode, with ")
    expected = f"{100 * accuracy(trained_network()):.1f}\N{NO-BREAK SPACE}%"
    assert third.startswith(f"Accuracy {expected} with the statistics that are stored, ")
    assert third.endswith("Data: 256 samples of images.npz in batches of 32, as they are.")


def test_without_data_a_line_says_which_flags_the_other_checks_need(run: Any) -> None:
    status, out, _ = run(f"{HERE}:trained_network")
    assert status == 0
    _, second = out.splitlines()
    number = sum(bool(check.needs) for check in CHECKS.values())
    of_labels = sum("score" in check.needs for check in CHECKS.values())
    assert f" {number} more need --data (" in second
    assert f"--data with labels ({of_labels}), --checkpoint (1), --reference (1)," in second
    assert second.endswith("; see --list.")
    assert len(second) < 3 * 80


def test_every_need_of_a_check_is_a_flag_or_said_to_be_none(run: Any) -> None:
    _, listed, _ = run("--list")
    words = " ".join(listed.split())
    flags = {each.name for each in fields(DoctorConfig)}
    for check in CHECKS.values():
        given = [GIVEN_BY[need] for need in check.needs]
        assert all(f"{each}" in words for each in given)
        for flag in re.findall(r"--([\w-]+)", " ".join(given)):
            assert flag.replace("-", "_") in flags


def test_a_fault_is_shown_with_cost_and_remedy_and_exit_status_1(run: Any, images: str) -> None:
    status, out, _ = run(f"{HERE}:wiped_network", "--data", images)
    words = " ".join(out.split())
    assert status == 1
    assert "error statistics-at-init at 1 and 4 Its running statistics are those of a new layer" in words
    assert "Load the statistics from a full state dict, or measure them on training images (recalibrate_)." in words
    assert re.search(r"train-eval-gap at 1 and 4, cost [\d.]+ ± [\d.]+ points of accuracy In evaluation", words)
    assert "(recalibrate_). * " in words and "* --treat FILE does this" in words


def test_it_tells_how_far_it_is(images: str, tmp_path: Path) -> None:
    told: list[Any] = []

    class Told:
        def message(self, text: str) -> None:
            pass

        def begin(self, name: str, *, number: int, of: int, **_: Any) -> None:
            told.append((name, number, of))

        def advance(self, name: str, share: float, *_: Any, **__: Any) -> None:
            told.append(share)

        def end(self, name: str, text: str = "") -> None:
            told.append(f"end {name}")

    config = DoctorConfig(source=f"{HERE}:trained_network", data=images, treat=tmp_path / "out.safetensors")
    run_doctor(config, Told())  # type: ignore[arg-type]
    assert [each for each in told if not isinstance(each, float)] == [
        ("looking at the model", 1, 3),
        "end looking at the model",
        ("treating it", 2, 3),
        "end treating it",
    ]
    shares = [each for each in told if isinstance(each, float)]
    assert shares == [pytest.approx(run / 12) for run in range(1, 13)]  # of four batches


def test_a_note_alone_is_exit_status_0(run: Any) -> None:
    status, out, _ = run("tests.checkup.test_command:build_with_bias")
    assert (status, out.splitlines()[0]) == (0, "Healthy, with 1 note.")
    assert "redundant-bias" in out


def build_with_bias() -> torch.nn.Module:
    model = trained_network()
    model[0] = torch.nn.Conv2d(1, 8, 3)
    return model


@pytest.mark.parametrize("form", ["pth", "nested", "safetensors", "parameters"])
def test_weights_are_read_in_every_form(run: Any, tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    model = wiped_network()
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    state = model.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "parameters":
        torch.save(dict(model.named_parameters()), path)
    else:
        torch.save(
            state if form == "pth" else {"model": {f"module.{name}": each for name, each in state.items()}}, path
        )
    status, out, err = run(f"{HERE}:untrained_network", "--weights", str(path))
    assert (status, "statistics-at-init" in out) == (1, True)
    assert f"of the model's {len(state)} tensors read" in err
    assert ("not there: 1.running_mean" in err) == (form == "parameters")


def test_statistics_in_half_precision_are_told(run: Any, tmp_path: Path) -> None:
    torch.save(trained_network().half().state_dict(), tmp_path / "a.pth")
    status, _, err = run(f"{HERE}:untrained_network", "--weights", str(tmp_path / "a.pth"))
    assert status == 0
    assert "stored there in float16" in err


def test_a_model_in_half_precision_is_looked_at(run: Any, images: str) -> None:
    status, out, _ = run("tests.checkup.test_command:build_half", "--data", images)
    assert (status, "low-precision-statistics" in out) == (0, True)
    assert "Accuracy" in out


def build_half() -> torch.nn.Module:
    return trained_network().bfloat16()


def test_json_on_standard_output_is_a_diagnosis_alone(run: Any, images: str) -> None:
    status, out, _ = run(f"{HERE}:wiped_network", "--data", images, "--json")
    content = json.loads(out)
    assert status == 1
    assert Diagnosis.from_json(out).of("statistics-at-init")[1].layer == "4"
    assert content["model"] == f"{HERE}:wiped_network"
    assert content["command"] == f"steadynorm doctor {HERE}:wiped_network --data {images}"
    assert content["accuracy"]["batch"] > content["accuracy"]["stored"] + 0.2


def test_files_are_written_beside_the_table(run: Any, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"a.{name}" for name in ("json", "sarif")}
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    status, out, _ = run(f"{HERE}:wiped_network", *flags)
    assert (status, out.startswith("Found 2 errors.")) == (1, True)
    assert len(Diagnosis.from_json(paths["json"].read_bytes()).findings) == 2
    assert len(json.loads(paths["sarif"].read_text())["runs"][0]["results"]) == 2


def test_checks_can_be_skipped(run: Any) -> None:
    status, out, _ = run(f"{HERE}:wiped_network", "--skip", "statistics-at-init")
    assert (status, out.splitlines()[0]) == (0, "Healthy: no fault was found.")


def test_a_check_is_explained_by_its_page(run: Any) -> None:
    for name, check in CHECKS.items():
        assert run("--explain", name) == (0, check.explain(), "")


def test_a_wrong_name_is_answered_with_those_that_are_like_it(run: Any) -> None:
    status, out, err = run("--explain", "train_eval")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("steadynorm: --explain: no check is called 'train_eval'. Did you mean train-eval-gap")
    assert err.endswith("? --list shows all.\n")
    assert run("--explain", "zzz")[2] == "steadynorm: --explain: no check is called 'zzz'. --list shows all.\n"


def test_every_check_is_listed(run: Any) -> None:
    status, out, _ = run("--list")
    assert status == 0
    assert all(re.search(rf"^ {name} ", out, flags=re.MULTILINE) for name in CHECKS)


def test_labels_of_other_classes_are_not_scored(run: Any, tmp_path: Path) -> None:
    x, y = np.zeros((40, 1, 12, 12), dtype=np.float32), np.arange(40) % 5
    x += np.random.default_rng(0).normal(size=x.shape)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    _, out, _ = run(f"{HERE}:trained_network", "--data", str(tmp_path / "a.npz"), "--batch-size", "8")
    assert "Accuracy is not measured: there are labels of 5 classes, and the model has 2 outputs." in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "give the model: PACKAGE.MODULE:FUNCTION"),
        (("nowhere:build",), "nowhere: cannot be imported"),
        ((f"{HERE}:images",), f"{HERE}:images: failed with TypeError"),
        ((f"{HERE}:trained_network", "--weights", "none.pth"), "--weights: none.pth: there is no such file."),
        ((f"{HERE}:trained_network", "--data", "imagenet"), "--data: must be one of"),
        ((f"{HERE}:trained_network", "--data", "shapes"), "--data: the model failed on an input of shape (64, 3"),
        ((f"{HERE}:trained_network", "--skip", "eps"), "--skip: no check is called 'eps'"),
        ((f"{HERE}:trained_network", "--batches", "33"), "--batches: must be at most 32"),
        ((f"{HERE}:trained_network", "--batch-size", "0"), "--batch-size: must be at least 1"),
        ((f"{HERE}:trained_network", "--mean", "0"), "--mean: says how data are read. Give data by --data."),
        ((f"{HERE}:trained_network", "--data", "digits", "--std", "0"), "--std: must be numbers above 0."),
        ((f"{HERE}:trained_network", "--weights-key", "ema"), "--weights-key: says where"),
        ((f"{HERE}:trained_network", "--checkpoint-key", "ema"), "--checkpoint-key: says where"),
        ((f"{HERE}:trained_network", "--checkpoint", "none.pth"), "--checkpoint: none.pth: there is no such file."),
        ((f"{HERE}:trained_network", "--reference", "digits"), "--reference: says what data are compared with."),
        ((f"{HERE}:trained_network", "--accumulation", "4"), "--accumulation: says how many batches a step takes."),
        ((f"{HERE}:trained_network", "--data", "digits", "--world-size", "0"), "--world-size: must be at least 1"),
        ((f"{HERE}:trained_network", "--optimizer", "sgd"), "--optimizer: must be PACKAGE.MODULE:FUNCTION, got sgd."),
        ((f"{HERE}:trained_network", "--optimizer", f"{HERE}:nothing"), f"{HERE}: has no 'nothing'."),
        ((f"{HERE}:trained_network", "--optimizer", "copy:copy"), "--optimizer: copy:copy: must return a torch.optim"),
        (("--json", "a.json", f"{HERE}:trained_network"), "give the model"),
        ((f"{HERE}:trained_network", "--json", "a", "b"), "--json: must be one file, got 2."),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(run: Any, arguments: tuple[str, ...], why: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"steadynorm: {why}")
