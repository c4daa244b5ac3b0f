"""A gate as a file: its calibration and what it remembers of a stream, as safetensors."""

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
from steadynorm.adaptation.class_moments import ClassMoments, Profiles
from steadynorm.adaptation.gate import Gate
from steadynorm.statistics import Moments

__all__ = ["fingerprint", "read_gate", "write_gate"]

FORMAT = "steadynorm gate 1"
NUMBERS = ("images", "slope", "bend", "intercept", "floor", "sure", "few", "alone", "even", "margin")
TABLES = ("noise", "usual_deviation")


def fingerprint(model: nn.Module) -> str:
    """Give a digest of a model's state: names, shapes, dtypes and every bit."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_gate(gate: Gate, model: nn.Module, path: Path) -> None:
    """Write a gate that was calibrated for this model."""
    from safetensors.torch import save_file  # comes with an extra

    known = gate.calibration
    described = {name: getattr(known, name) for name in (*NUMBERS, *TABLES, "line")}
    described |= {"apart": dict(known.profiles.apart), "deep": list(known.profiles.mixed)}
    described |= {"ordered": gate.ordered, "every": gate.every}
    tensors = {f"stream.{name}": each for name, each in gate.state().items()}
    tensors |= {f"classes.{name}": each for name, each in known.classes.of.items()}
    tensors |= {f"profiles.{name}": each for name, each in known.profiles.of.items()}
    tensors |= {f"mixed.{name}": torch.stack((each.mean, each.var)) for name, each in known.profiles.mixed.items()}
    metadata = {"format": FORMAT, "model": fingerprint(model), "calibration": json.dumps(described)}
    save_file({name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()}, path, metadata)


def read_gate(model: nn.Module, path: Path) -> Gate:
    """Read a gate, onto the model's device.

    Raises:
        ValueError: the file is of another model, or holds no gate.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(f"Adapted.load: {path}: must be a file that Adapted.save wrote, got {error}.") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"Adapted.load: {path}: must be a file that Adapted.save wrote, got another.")
    if metadata["model"] != fingerprint(model):
        raise ValueError(
            f"Adapted.load: {path}: must be of this model, got one of another or of other weights. Load the weights "
            "that it was calibrated with, or calibrate anew."
        )
    first = next(chain(model.parameters(), model.buffers()))
    tensors = {name: each.to(first.device) for name, each in tensors.items()}
    described = json.loads(metadata["calibration"])
    gate = Gate(_calibration(described, tensors), ordered=described["ordered"], every=described["every"])
    gate.load(_part(tensors, "stream"))
    return gate


def _calibration(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
    mixed, of = _part(tensors, "mixed"), _part(tensors, "profiles")
    profiles = Profiles(
        mixed={name: Moments(mean=mixed[name][0], var=mixed[name][1], count=0) for name in described["deep"]},
        of={name: of[name] for name in described["deep"]},
        apart=described["apart"],
    )
    return Calibration(
        **{name: described[name] for name in (*NUMBERS, *TABLES)},
        line=tuple(described["line"]),
        classes=ClassMoments(of=_part(tensors, "classes")),
        profiles=profiles,
    )


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}
