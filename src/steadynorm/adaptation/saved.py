"""Save a gate as safetensors: its calibration and its memory of a stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.adaptation.calibration import Calibration
from steadynorm.adaptation.class_moments import ClassMoments, Steps
from steadynorm.adaptation.gate import Gate
from steadynorm.adaptation.regression import Regression

__all__ = ["fingerprint", "read_gate", "write_gate"]

FORMAT = "steadynorm gate 3"
NUMBERS = ("images", "noise", "few", "spread", "margin", "least")
REGRESSIONS = ("mixed", "gain", "right")
ROWS = ("center", "scale", "points", "weights")


def fingerprint(model: nn.Module) -> str:
    """Return a digest of a model's state: names, shapes, dtypes and every bit."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_gate(gate: Gate, model: nn.Module, path: Path) -> None:
    """Write a gate with the fingerprint of its model."""
    from safetensors.torch import save_file  # comes with an extra

    known = gate.calibration
    described = {name: getattr(known, name) for name in NUMBERS}
    described |= {name: getattr(known, name).level for name in REGRESSIONS}
    described |= {"apart": dict(known.steps.apart), "ordered": gate.ordered, "every": gate.every}
    tensors = {f"stream.{name}": each for name, each in gate.state().items()}
    tensors |= {f"classes.{name}": each for name, each in known.classes.of.items()}
    tensors |= {f"{name}.{row}": getattr(getattr(known, name), row) for name in REGRESSIONS for row in ROWS}
    metadata = {"format": FORMAT, "model": fingerprint(model), "calibration": json.dumps(described)}
    save_file({name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()}, path, metadata)


def read_gate(model: nn.Module, path: Path) -> Gate:
    """Read a gate, onto the model's device.

    Raises:
        ValueError: the file belongs to another model, or holds no gate.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(f"Adapted.load: {path}: must be a file that Adapted.save wrote, got {error}.") from error
    found = metadata.get("format", "")
    if found != FORMAT:
        if found.startswith(FORMAT.rpartition(" ")[0]):
            raise ValueError(f"Adapted.load: {path}: must be in format {FORMAT!r}, got {found!r}. Calibrate again.")
        raise ValueError(f"Adapted.load: {path}: must be a file that Adapted.save wrote, got another.")
    if metadata["model"] != fingerprint(model):
        raise ValueError(
            f"Adapted.load: {path}: must be of this model, got one of another or of other weights. Load the weights "
            "that it was calibrated with, or calibrate again."
        )
    first = next(chain(model.parameters(), model.buffers()))
    tensors = {name: each.to(first.device) for name, each in tensors.items()}
    described = json.loads(metadata["calibration"])
    gate = Gate(_calibration(described, tensors), ordered=described["ordered"], every=described["every"])
    gate.load(_part(tensors, "stream"))
    return gate


def _calibration(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
    fitted: dict[str, Any] = {
        name: Regression(level=described[name], **{row: each.cpu() for row, each in _part(tensors, name).items()})
        for name in REGRESSIONS
    }
    return Calibration(
        **{name: described[name] for name in NUMBERS},
        **fitted,
        classes=ClassMoments(of=_part(tensors, "classes")),
        steps=Steps(apart=described["apart"]),
    )


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}
