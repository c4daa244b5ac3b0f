"""A trained network, read back from the file that an experiment has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from steadynorm.lab.data.images import CLASS_COUNT
from steadynorm.lab.failure import UserError
from steadynorm.lab.networks import build_network

__all__ = ["Checkpoint", "load_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network with its trained weights, in evaluation mode, and how it was built."""

    model: nn.Module
    network: str
    arm: str
    depth: int
    widths: tuple[int, ...]


def load_checkpoint(path: Path) -> Checkpoint:
    """Build the network that a checkpoint is of, and load its weights.

    Args:
        path: a ``.safetensors`` file in a run's ``checkpoints``.

    Raises:
        UserError: there is no such file, or it is not a checkpoint of an experiment.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a directory. Give a .safetensors file of a run's checkpoints.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        widths = tuple(int(width) for width in metadata["widths"].split())
        network, arm, depth = metadata["network"], metadata["arm"], int(metadata["depth"])
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file. Give a .safetensors file of a run's checkpoints.") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: is not a checkpoint of steadynorm's experiments ({error}).") from error
    model = build_network(network, arm=arm, depth=depth, widths=widths, classes=CLASS_COUNT, seed=0)
    try:
        if missing := model.state_dict().keys() - tensors.keys():
            raise KeyError(f"missing {', '.join(sorted(missing))}")
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: its tensors are not those of {network} with {arm} ({error}).") from error
    return Checkpoint(model=model.eval(), network=network, arm=arm, depth=depth, widths=widths)
