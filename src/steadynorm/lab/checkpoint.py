"""A trained network, loaded from the file that an experiment wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from steadynorm.lab.arms import parse_arm
from steadynorm.lab.networks import build_network
from steadynorm.lab.networks.given import calls_code, is_given
from steadynorm.reporting.failure import UserError

__all__ = ["Checkpoint", "load_checkpoint"]

BEFORE = {"classes": "10", "channels": "3", "image_size": "32 32", "seed": "0"}
"""Values that checkpoints of version 0.1 lack: all of them are for such images, and the seed decides nothing else."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network with its trained weights, in evaluation mode, and the settings it was built with."""

    model: nn.Module
    network: str
    arm: str
    depth: int
    widths: tuple[int, ...]
    classes: int
    channels: int
    image_size: tuple[int, int]
    """Height and width of the images that it was trained on."""


def load_checkpoint(path: Path, *, code: Collection[str] = (), flag: str = "--code") -> Checkpoint:
    """Build the network of a checkpoint, and load its weights.

    Args:
        path: a ``.safetensors`` file in a run's ``checkpoints``.
        code: functions and classes, ``package.module:name``, that the file may call. A user's network or normalization
            is built by a call, and a foreign file could name any function.
        flag: the flag that names them, for messages.

    Raises:
        UserError: there is no such file, it is not a checkpoint of an experiment, it names code that is not among
            ``code``, or its network cannot be built.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a directory. Give a .safetensors file of a run's checkpoints.")
    try:
        with safe_open(path, "pt") as file:
            metadata = BEFORE | (file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        widths = tuple(int(width) for width in metadata["widths"].split())
        height, width = map(int, metadata["image_size"].split())
        how = {
            "arm": metadata["arm"],
            "depth": int(metadata["depth"]),
            "widths": widths,
            "image_size": (height, width),
            **{name: int(metadata[name]) for name in ("classes", "channels", "seed")},
        }
        network, arm = metadata["network"], metadata["arm"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file. Give a .safetensors file of a run's checkpoints.") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: is not a checkpoint of steadynorm's experiments ({error}).") from error
    seed = how.pop("seed")  # some user functions draw numbers that are in no tensor of the network
    _check_code(path, network, arm, code, flag)
    _check_size(path, tensors, network, how)
    try:
        model = build_network(network, seed=seed, **how)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise _others(path, network, arm, error) from error
    return Checkpoint(model=model.eval(), network=network, **how)


def _check_code(path: Path, network: str, arm: str, code: Collection[str], flag: str) -> None:
    """Refuse to call code that the file names but the user does not."""
    try:
        found = parse_arm(arm)
    except UserError as error:
        raise UserError(f"{path}: is not a checkpoint of steadynorm's experiments ({error}).") from error
    named = [*([network] if calls_code(network) else []), *([found.target] if found.calls_code else [])]
    if unknown := [each for each in named if each not in code]:
        raise UserError(
            f"{path}: its network is built by calling {' and '.join(unknown)}. If you trust it, add "
            f"{flag} {' '.join(unknown)}"
        )


def _check_size(path: Path, tensors: Mapping[str, Tensor], network: str, how: Mapping[str, Any]) -> None:
    """Refuse metadata of a network larger than its tensors, before any memory is allocated.

    Raises:
        UserError: the network is unknown, or has other tensors.
    """
    if is_given(network):
        _check_given(path, tensors, network, how)
        return
    if how["depth"] > len(tensors):
        raise _others(path, network, how["arm"], f"{how['depth']} convolutions, {len(tensors)} tensors")
    try:
        with torch.device("meta"):
            built = build_network(network, seed=0, **how)
    except (UserError, RuntimeError) as error:  # raised by torch for sizes that no memory has
        raise UserError(f"{path}: is not a checkpoint of steadynorm's experiments ({error}).") from error
    _check_shapes(path, tensors, network, how["arm"], built.state_dict())


def _check_given(path: Path, tensors: Mapping[str, Tensor], network: str, how: Mapping[str, Any]) -> None:
    """Refuse tensors that do not fit a user's network, if it can be built without memory."""
    try:
        with torch.device("meta"):
            built = build_network(network, seed=0, **how)
    except (
        UserError
    ):  # its function may read values, which do not exist here; if it cannot be built, the next step reports it
        return
    _check_shapes(path, tensors, network, how["arm"], built.state_dict())


def _check_shapes(
    path: Path, tensors: Mapping[str, Tensor], network: str, arm: str, expected: Mapping[str, Tensor]
) -> None:
    for what, names in (("missing", expected.keys() - tensors.keys()), ("unknown", tensors.keys() - expected.keys())):
        if names:
            raise _others(path, network, arm, f"{what} {', '.join(sorted(names))}")
    for name, tensor in expected.items():
        found, needed = tuple(tensors[name].shape), tuple(tensor.shape)
        if found != needed:
            raise _others(path, network, arm, f"{name}: shape {found} in place of {needed}")


def _others(path: Path, network: str, arm: str, why: object) -> UserError:
    return UserError(f"{path}: its tensors are not those of {network} with {arm} ({why}).")
