"""Where a model to export comes from: a checkpoint of an experiment, or a function that builds it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from steadynorm.lab.checkpoint import load_checkpoint
from steadynorm.lab.failure import UserError

__all__ = ["Logits", "Source", "as_logits", "load_source", "one_line"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model and what it is called."""

    model: nn.Module
    """Takes a float32 tensor of shape (N, 3, H, W), gives one of shape (N, classes)."""
    name: str
    """For people."""


class Logits(nn.Module):
    """A model whose output is an object with ``logits``, as Hugging Face's have it, or a tuple, with a tensor for it.

    Args:
        model: takes images alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, pixels: Tensor) -> Tensor:
        """Give the logits."""
        output = self.model(pixels)
        found: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return found


def load_source(what: str, *, weights: Path | None) -> Source:
    """Load a model.

    Args:
        what: path of a checkpoint of our experiments, or ``package.module:function`` that builds a model.
        weights: ``.safetensors``, or a state dict that ``torch.save`` wrote; for a built model only, and only where the
            function does not load them itself.

    Raises:
        UserError: it cannot be found, imported or built, or its tensors are not the model's.
    """
    module, colon, function = what.partition(":")
    if not colon or what.endswith(".safetensors"):
        if weights is not None:
            raise UserError(f"--weights: {what} is a checkpoint, which holds its own. Drop the flag.")
        found = load_checkpoint(Path(what))
        return Source(model=found.model, name=f"{found.network} with {found.arm.replace('_', ' ')}")
    model = _build(module, function)
    if weights is not None:
        _load_weights(model, weights)
    return Source(model=model, name=what)


def as_logits(model: nn.Module, example: Tensor) -> nn.Module:
    """Wrap a model whose output is no tensor.

    Raises:
        UserError: it does not take the example, or gives nothing of shape (N, classes).
    """
    try:
        with torch.no_grad():
            output = model(example)
            if isinstance(output, Tensor):
                wrapped: nn.Module = model
            else:
                wrapped = Logits(model)
                output = wrapped(example)
    except Exception as error:
        size = "x".join(str(each) for each in example.shape[1:])
        raise UserError(
            f"the model does not take images of {size}: {one_line(error)}. "
            "Give the size it was made for by --input-size."
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(example):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"the model must give a row of numbers for each image, got {shape} for {len(example)} images.")
    return wrapped


def one_line(error: BaseException) -> str:
    """Give the first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__


def _build(module: str, function: str) -> nn.Module:
    if (here := str(Path.cwd())) not in sys.path:  # as python -m has it
        sys.path.insert(0, here)
    try:
        builder = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError) as error:
        raise UserError(f"{module}: cannot be imported ({one_line(error)}). Run from where it can.") from error
    except AttributeError as error:
        raise UserError(f"{module}: has no {function!r}.") from error
    try:
        model = builder()
    except Exception as error:
        raise UserError(f"{module}:{function}: failed with {one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{module}:{function}: must return a torch.nn.Module, got {type(model).__name__}.")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"--weights: {path}: there is no such file.") from error
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise UserError(f"--weights: {path}: is no file of weights ({one_line(error)}).") from error
    if not isinstance(state, Mapping):
        raise UserError(f"--weights: {path}: must hold a state dict, got {type(state).__name__}.")
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is of no use" for name in state if name not in own]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"--weights: {path}: does not fit the model: {'; '.join(wrong[:3])}{more}.")
    model.load_state_dict(state)
