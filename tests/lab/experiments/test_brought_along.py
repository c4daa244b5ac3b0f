"""Data and networks as people bring them, read from files, through the experiments and on to doctor and export."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from steadynorm.checkup.command import run_doctor
from steadynorm.checkup.config import DoctorConfig
from steadynorm.deploy.command import ExportConfig, run_export
from steadynorm.deploy.results import read_outcome
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.ops.dispatch import backend
from steadynorm.reporting.progress import silent_display
from steadynorm.reporting.records import Record, read_record
from tests.support.experiments import Recorder

pytestmark = pytest.mark.slow

TRAINING: Mapping[str, Any] = {"precision": "fp32", "batch_size": 16, "epochs": 1, "milestones": ()}
CNN: Mapping[str, Any] = {"depth": 2, "widths": (4, 8)}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "compare": {},
    "sweep": {"batch_size": (16,), "lr": (0.05,)},
    "shift": {"corruptions": ("contrast",), "severities": (5,), "methods": ("stored", "batch")},
    "stream": {"arms": ("batch_norm",), "methods": ("stored",)},
}
"""Of each experiment that is shown every source: as small as it goes."""
MINE = '''
"""A network of one's own."""

from torch import nn


def build(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
'''


def folder(place: Path) -> dict[str, Any]:
    """Coloured photographs of three classes, wider than high, for training and validation."""
    random = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 10)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (place / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[..., label] += 80
                Image.fromarray(pixels).save(place / part / name / f"{number}.png")
    return {"data": str(place)}


def archive(place: Path) -> dict[str, Any]:
    """scikit-learn's digits, 28 x 28 pixels in one channel."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.kron(images.reshape(-1, 8, 8) * 255 / 16, np.ones((3, 3))).astype(np.uint8)
    np.savez(place / "digits.npz", x=np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:260], y=labels[:260])
    return {"data": str(place / "digits.npz")}


def shards(place: Path) -> dict[str, Any]:
    """As CIFAR-100 is on the hub: encoded images of 32 x 32 pixels in a hundred fine and twenty coarse classes."""
    random = np.random.default_rng(0)
    for name, count in (("train-00000-of-00002", 100), ("train-00001-of-00002", 100), ("test-00000-of-00001", 100)):
        fine = np.arange(count) % 100
        encoded = [{"bytes": png(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)), "path": None} for _ in fine]
        table = {"img": encoded, "fine_label": fine.tolist(), "coarse_label": (fine // 5).tolist()}
        pq.write_table(pa.table(table), place / f"{name}.parquet")
    return {"data": str(place)}


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "png")
    return held.getvalue()


def of_transformers(place: Path) -> dict[str, Any]:
    """A residual network of transformers, by its configuration, for the digits."""
    pytest.importorskip("transformers")
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    (place / "config.json").write_text(json.dumps({"model_type": "resnet", **sizes}))
    return archive(place) | {"network": f"hf:{place / 'config.json'}"}


SOURCES = {"folder": folder, "npz": archive, "parquet": shards, "transformers": of_transformers}


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Flags that name data, and a network where it is brought along too; the folder's is a function of one's own."""
    place = tmp_path_factory.mktemp(request.param)
    found: dict[str, Any] = SOURCES[request.param](place)
    if request.param == "folder":
        modules = tmp_path_factory.mktemp("modules")
        (modules / "own_network_of_tests.py").write_text(MINE)
        patch = pytest.MonkeyPatch()
        patch.syspath_prepend(modules)
        request.addfinalizer(patch.undo)
        found["network"] = "own_network_of_tests:build"
    return found


def run(name: str, out: Path, source: Mapping[str, Any]) -> Record:
    made = EXPERIMENTS[name]
    sizes: dict[str, Any] = dict(CNN) if "network" not in source else {}
    if name == "sweep" and sizes:
        sizes["depth"] = (sizes["depth"],)
    with backend("torch"):
        return read_record(
            made.run(made.config(**{**TRAINING, **sizes, **CONFIGS[name], **source, "out": out}), Recorder())
        )


@pytest.mark.parametrize("name", ["sweep", "shift", "stream"])
def test_an_experiment_runs_on_what_is_brought_along(name: str, source: dict[str, Any], tmp_path: Path) -> None:
    record = run(name, tmp_path / "run", source)
    assert record.cells and all(cell.has_ended for cell in record.cells)
    assert EXPERIMENTS[name].describe(record).finished


def test_a_comparison_leads_to_the_doctor_and_to_an_export(source: dict[str, Any], tmp_path: Path) -> None:
    record = run("compare", tmp_path / "run", source)
    assert {cell.factors["arm"] for cell in record.cells} == {"batch_norm", "none"}
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("batch_norm*.safetensors")
    network = source.get("network", "")
    code = (network,) if network.startswith("own_") else ()
    looked_at = run_doctor(
        DoctorConfig(source=str(checkpoint), data=source["data"], batch_size=16, batches=3, code=code), silent_display()
    )
    assert len(looked_at.diagnosis.layers) >= 2
    place = run_export(
        ExportConfig(
            source=str(checkpoint),
            code=code,
            format=("torchscript",),
            quantize=("none",),
            images=8,
            calibration_images=8,
            requests=1,
            batch_size=(1,),
            out=tmp_path / "served",
        ),
        silent_display(),
    )
    assert read_outcome(place).of("torchscript", "none").agreement == 1.0
