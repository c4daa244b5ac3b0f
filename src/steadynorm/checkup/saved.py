"""Write a changed model's weights to a file, under the model's own names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steadynorm.deploy.source import is_built
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import atomic_path

__all__ = ["check_target", "save_model"]

HALF = (torch.float16, torch.bfloat16)


def check_target(path: Path, flag: str) -> None:
    """Refuse a file that could not be written, before any slow step.

    Raises:
        UserError: it has another extension, or exists already.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{flag}: must name a .safetensors file, got {path}.")
    if path.exists() or path.is_symlink():
        raise UserError(f"{flag}: {path} exists already. Give a new file.")


def save_model(model: nn.Module, path: Path, source: str, *, single: bool = False) -> None:
    """Write the tensors of a state dict, each with its own memory.

    Args:
        model: the model.
        path: a new file.
        source: source of the model; if it is a checkpoint of an experiment, the new file is one as well.
        single: write half precision as float32.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: each for name, each in model.state_dict().items() if isinstance(each, Tensor)}
    tensors = {name: each.detach().cpu().clone().contiguous() for name, each in state.items()}
    if single:
        tensors = {name: each.float() if each.dtype in HALF else each for name, each in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, _metadata(source))


def _metadata(source: str) -> dict[str, str]:
    """Return an experiment checkpoint's metadata about its network."""
    if is_built(source):
        return {"format": "pt"}
    with safe_open(source, "pt") as file:
        return dict(file.metadata() or {})
