"""Every experiment on data as people bring them: two unequal classes, one channel, not square, few images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from steadynorm.lab import experiment
from steadynorm.lab.data import Dataset, Images
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.ops.dispatch import backend
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, read_record
from steadynorm.reporting.words import HEADLINE
from tests.support.experiments import Recorder

TRAINING: Mapping[str, Any] = {
    "data": "pets.npz",
    "precision": "fp32",
    "depth": 2,
    "widths": (4, 8),
    "batch_size": 16,
    "epochs": 1,
    "milestones": (),
}
FEW = {name: TRAINING[name] for name in ("data", "precision", "batch_size")}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "compare": TRAINING,
    "sweep": TRAINING | {"depth": (2,), "batch_size": (16,), "lr": (0.05,), "largest_rate": True},
    "shift": TRAINING | {"corruptions": ("contrast", "saturate", "zoom_blur", "jpeg_compression"), "severities": (5,)},
    "stream": TRAINING | {"arms": ("gated_batch_norm", "batch_norm")},
    "scale": TRAINING | {"network": "cnn", "batch_size": (16, 32), "variants": ("recipe", "plain"), "warm_up": 0},
    "landscape": TRAINING | {"probe_every": 2},
    "classic": FEW | {"steps": 4, "widths": (6, 5)},
    "statistics": FEW | {"steps": 3},
    "recalibration": TRAINING | {"seeds": (0,), "images": (20, 60)},
}
"""Of each experiment: as small as it goes."""
FALSE = ("shapes", "photograph", "ten classes", "pets.npz", "32 x 32 pixels in")
"""What no report of these data may say."""
OF_OTHERS = (
    "The article's figures are for CIFAR-10",
    "the article's, for CIFAR-10",
    "made after CIFAR-10-C",
    "MNIST. ",
)
"""Where other data may be named."""


def pets() -> Dataset:
    """One class is a light spot and a quarter of the images; they lie class by class, as in folders."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Images:
        labels = (torch.arange(count) >= count * 3 // 4).long()
        rows = torch.randint(60, 160, (count, 12, 9, 1), generator=generator)
        rows[labels == 1, 3:8, 2:6] += 90
        return Images.of_rows(rows.to(torch.uint8), labels)

    train, validation = split(64), split(24)
    return Dataset(name="pets", train=train, validation=validation, classes=("cat", "dog"), mean=(0.45,), std=(0.15,))


def run(name: str, out: Path, display: Recorder | None = None, **changed: Any) -> Record:
    made = EXPERIMENTS[name]
    config = made.config(**{**CONFIGS[name], "out": out, **changed})
    with mock.patch.object(experiment, "load_dataset", lambda name, **_: pets()), backend("torch"):
        return read_record(made.run(config, display or Recorder()))


def texts(value: object) -> list[str]:
    """All that a report says, in its parts."""
    if isinstance(value, str):
        return [value]
    if dataclasses.is_dataclass(value):
        return texts(list(vars(value).values()))
    if isinstance(value, Mapping):
        return texts(list(value.values()))
    return [text for one in value for text in texts(one)] if isinstance(value, list | tuple) else []


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_on_data_of_ones_own_and_says_nothing_false_of_them(name: str, tmp_path: Path) -> None:
    record = run(name, tmp_path / "a")
    assert all(cell.has_ended for cell in record.cells)
    report = EXPERIMENTS[name].describe(record)
    assert report.finished
    text = "\n".join(texts(report))
    assert not [word for word in FALSE if word in text]
    for known in OF_OTHERS:
        text = text.replace(known, "")
    assert "CIFAR" not in text and "MNIST" not in text
    assert "of 12 x 9 pixels in one channel in 2 classes" in text
    assert "on pets" in report.lead + report.headline or "of pets" in report.lead
    assert len(report.headline) <= HEADLINE
    assert "Guessing is right on 75.0" in text and "One validation image is 4.2" in text


@pytest.mark.parametrize(("name", "flag"), [("scale", "--batch-size"), ("recalibration", "--images")])
def test_defaults_for_larger_data_are_refused_in_one_line(name: str, flag: str, tmp_path: Path) -> None:
    default = {"scale": {"batch_size": (128, 8192)}, "recalibration": {"images": (100, 10_000)}}[name]
    with pytest.raises(UserError, match=rf"^{flag}: [^\n]*64 training images"):
        run(name, tmp_path / "a", **default)
    assert not (tmp_path / "a").exists()


def test_corruptions_of_color_alone_are_refused_for_images_without(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--corruptions: saturate changes nothing in images of one channel"):
        run("shift", tmp_path / "a", corruptions=("saturate",))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["shift", "stream"])
def test_methods_of_which_none_can_be_calibrated_are_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^--methods: gated and gate need images of 3 classes, got 2"):
        run(name, tmp_path / "a", methods=("gated", "gate"))
    assert not (tmp_path / "a").exists()
