"""``--treat``: the file holds what repaired the model, and the exit status is that of a model built with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steadynorm import cli
from steadynorm.checkup.command import run_doctor
from steadynorm.checkup.config import DoctorConfig
from steadynorm.checkup.treatment import IN_CODE
from steadynorm.doctor import diagnose
from steadynorm.doctor.treatments import TREATMENTS
from steadynorm.reporting.diagnosis import Examination, as_content, treatment_lines
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import silent_display
from tests.support.doctor import batches, save_images, trained_network

HERE = "tests.support.doctor"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_images(tmp_path_factory.mktemp("data") / "images.npz"))


def doctor(source: str, out: Path, **flags: Any) -> Examination:
    return run_doctor(DoctorConfig(source=source, treat=out, batch_size=32, **flags), silent_display())


def loaded(path: Path) -> Any:
    model = trained_network()
    model.load_state_dict(load_file(path))
    return model


def test_wiped_statistics_come_back_and_the_file_is_healthy(tmp_path: Path, images: str) -> None:
    found = doctor(f"{HERE}:wiped_network", tmp_path / "a.safetensors", data=images)
    treated = found.treated
    assert treated is not None and treated.before is not None and treated.after is not None
    assert not found.diagnosis.is_healthy and found.is_healthy
    assert treated.after > treated.before + 0.2
    well = loaded(tmp_path / "a.safetensors").eval()
    assert diagnose(well, batches()).is_healthy
    assert torch.equal(well[0].weight, trained_network()[0].weight)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_printed_lines_say_what_was_done(tmp_path: Path, images: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.safetensors"
    cli.main(("doctor", f"{HERE}:wiped_network", "--data", images, "--treat", str(out)))  # ends with status 0
    printed = capsys.readouterr().out
    assert "recalibrate for statistics-at-init" in printed and "2 layers changed\n" in printed
    assert "score" not in printed.partition("layers changed")[2]
    assert f"Written: {out}\nA new model with these weights: Healthy: no fault was found.\n" in printed


def test_what_only_code_can_hold_is_said_and_remains(tmp_path: Path, images: str) -> None:
    out = tmp_path / "a.safetensors"
    found = doctor("tests.checkup.test_treatment:build_with_decay", out, data=images)
    assert not found.is_healthy
    assert found.treated is not None
    (told,) = found.treated.in_code
    assert told == "Not in the file: momentum at 1; set this momentum where the model is built."
    assert found.treated.remaining is not None
    assert {each.check for each in found.treated.remaining} == {"momentum-convention"}
    lines = treatment_lines(found.treated)
    assert "  warning momentum-convention at 1" in lines


def build_with_decay() -> torch.nn.Module:
    model: Any = trained_network()
    model[1].momentum = 0.99
    return model


def test_what_could_not_be_treated_is_named_and_no_file_is_written(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    found = doctor(f"{HERE}:wiped_network", out)
    assert found.treated is not None
    assert (found.treated.file, out.exists(), found.is_healthy) == ("", False, False)
    assert found.treated.applied == ("recalibrate for statistics-at-init: not done: it needs batches",)
    assert treatment_lines(found.treated)[-1] == "No file was written, since no treatment was kept."


def test_advice_is_left_to_the_user(tmp_path: Path) -> None:
    found = doctor("tests.checkup.test_treatment:build_with_dead_channels", tmp_path / "a.safetensors")
    assert found.treated is not None
    lines = treatment_lines(found.treated)
    assert lines[0] == "Nothing that was found can be treated."
    assert lines[1].startswith("Left to you: dead-channel at 4: ")


def build_with_dead_channels() -> torch.nn.Module:
    model: Any = trained_network()
    model[4].weight.data[1:] = 0
    return model


def test_an_eps_that_is_kept_is_told_as_code(tmp_path: Path, images: str) -> None:
    found = doctor("tests.checkup.test_treatment:build_with_eps", tmp_path / "a.safetensors", data=images)
    assert found.treated is not None
    assert any("set this eps where the model is built" in line for line in found.treated.in_code)


def build_with_eps() -> torch.nn.Module:
    model: Any = trained_network()
    model[4].eps = 1e6
    return model


def test_the_json_has_the_treatment_and_what_remains(tmp_path: Path, images: str) -> None:
    content = json.loads(
        json.dumps(as_content(doctor(f"{HERE}:wiped_network", tmp_path / "a.safetensors", data=images)))
    )
    assert content["healthy"] is False
    treatment = content["treatment"]
    assert (treatment["remaining"]["healthy"], treatment["file"]) == (True, str(tmp_path / "a.safetensors"))
    assert treatment["accuracy"]["after"] > treatment["accuracy"]["before"]


def test_tied_tensors_are_written(tmp_path: Path, images: str) -> None:
    found = doctor("tests.checkup.test_treatment:build_tied", tmp_path / "a.safetensors", data=images)
    assert found.is_healthy
    state = load_file(tmp_path / "a.safetensors")
    assert torch.equal(state["1.weight"], state["4.weight"])


def build_tied() -> torch.nn.Module:
    model: Any = trained_network()
    model[4].weight = model[1].weight
    model[1].reset_running_stats()
    return model


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"^--treat: .*a\.safetensors exists already\. Give a new file\.$"):
        doctor(f"{HERE}:wiped_network", tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"^--treat: must name a \.safetensors file"):
        doctor(f"{HERE}:wiped_network", tmp_path / "a.pth")


def test_every_treatment_is_a_change_of_numbers_or_told_as_code() -> None:
    assert set(IN_CODE) <= set(TREATMENTS)
    for name in set(TREATMENTS) - set(IN_CODE):
        assert name in {"float32", "load", "repair", "recalibrate"}
