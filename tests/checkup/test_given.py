"""What is given beside the model: data it is good on, a checkpoint, its optimizer, and what makes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from steadynorm.checkup.command import run_doctor
from steadynorm.checkup.config import DoctorConfig
from steadynorm.doctor import diagnose
from steadynorm.reporting.diagnosis import Examination
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import silent_display
from tests.support.doctor import batches, save_images, trained_network

HERE = "tests.support.doctor"


def examined(source: str, **flags: Any) -> Examination:
    return run_doctor(DoctorConfig(source=source, **flags), silent_display())


def found(examination: Examination) -> set[str]:
    return {each.check for each in examination.diagnosis}


@pytest.fixture
def images(tmp_path: Path) -> str:
    return str(save_images(tmp_path / "images.npz"))


@pytest.fixture
def shifted(tmp_path: Path) -> str:
    """The same images fed in another range, with their labels."""
    x, y = (torch.cat(each) for each in zip(*batches(), strict=True))
    np.savez(tmp_path / "shifted.npz", x=(x / 8 + 2).numpy(), y=y.numpy())
    return str(tmp_path / "shifted.npz")


def test_data_unlike_the_reference_are_a_domain_shift(images: str, shifted: str) -> None:
    other = examined(f"{HERE}:trained_network", data=shifted, reference=images, batch_size=32)
    assert other.diagnosis.of("domain-shift")[0].cost is not None
    assert other.diagnosis.of("domain-shift")[0].cost.quantity == "accuracy"
    same = examined(f"{HERE}:trained_network", data=images, reference=images, batch_size=32)
    assert "domain-shift" in same.diagnosis.checks
    assert same.diagnosis.is_healthy


def test_a_reference_without_labels_leaves_the_score_of_the_data(images: str, tmp_path: Path) -> None:
    with np.load(images) as file:
        np.savez(tmp_path / "a.npz", x=file["x"])
    seen = examined(f"{HERE}:trained_network", data=images, reference=str(tmp_path / "a.npz"), batch_size=32)
    assert seen.scores
    assert "train-eval-gap" in seen.diagnosis.checks


def test_a_reference_that_cannot_be_read_is_called_so(images: str) -> None:
    with pytest.raises(UserError, match=r"^--reference: must be one of: shapes"):
        examined(f"{HERE}:trained_network", data=images, reference="imagenet")


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_beside_its_checkpoint(tmp_path: Path, nested: bool) -> None:
    state = trained_network().state_dict()
    path = tmp_path / "a.pth"
    torch.save(
        {"epoch": 3, "state_dict": {f"model.{name}": each for name, each in state.items()}} if nested else state, path
    )
    assert found(examined(f"{HERE}:trained_network", checkpoint=path)) == set()
    lost = examined(f"{HERE}:wiped_network", checkpoint=path)
    assert [each.layer for each in lost.diagnosis.of("checkpoint-diff")] == ["1", "4"]


def test_treatment_loads_what_the_checkpoint_has_and_looks_again(tmp_path: Path) -> None:
    path, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save(trained_network().state_dict(), path)
    seen = examined(f"{HERE}:wiped_network", checkpoint=path, treat=out)
    assert seen.is_healthy
    assert seen.treated is not None and seen.treated.remaining is not None
    assert "checkpoint-diff" in seen.treated.remaining.checks
    well = trained_network().state_dict()
    assert all(torch.equal(each, well[name]) for name, each in load_file(out).items())


def test_which_of_several_checkpoints_is_meant_can_be_said(tmp_path: Path) -> None:
    path, state = tmp_path / "a.pth", trained_network().state_dict()
    torch.save({"model": state, "ema": {name: each + 1 for name, each in state.items()}}, path)
    with pytest.raises(UserError, match=r"^--checkpoint: .*a\.pth: .*Choose one of them with --checkpoint-key\.$"):
        examined(f"{HERE}:trained_network", checkpoint=path)
    assert found(examined(f"{HERE}:trained_network", checkpoint=path, checkpoint_key="model")) == set()
    assert found(examined(f"{HERE}:trained_network", checkpoint=path, checkpoint_key="ema")) == {"checkpoint-diff"}


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"^--checkpoint: .*a\.pth: the checkpoint must have tensors by the model's names"
    ):
        examined(f"{HERE}:trained_network", checkpoint=tmp_path / "a.pth")


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), weight_decay=0.05)


def test_the_optimizer_is_asked_for_its_weight_decay() -> None:
    seen = examined(f"{HERE}:trained_network", optimizer="tests.checkup.test_given:make_optimizer")
    model = trained_network()
    expected = diagnose(model, optimizer=make_optimizer(model)).of("decayed-affine")
    assert seen.diagnosis.of("decayed-affine") == expected != ()


@pytest.mark.parametrize("flags", [{"accumulation": 16}, {"world_size": 16}])
def test_what_makes_a_step_is_told_to_the_checks(images: str, flags: dict[str, int]) -> None:
    seen = examined("tests.checkup.test_given:build_training", data=images, batch_size=4, **flags)
    assert "effective-batch" in found(seen)
    assert "effective-batch" not in found(
        examined("tests.checkup.test_given:build_training", data=images, batch_size=4)
    )


def build_training() -> torch.nn.Module:
    return trained_network().train()
