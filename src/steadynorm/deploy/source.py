"""Load a model from its source: a checkpoint of an experiment, or a function that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from steadynorm.lab.functions import call_function, line_of
from steadynorm.lab.networks.logits import Logits
from steadynorm.lab.weights import load_weights
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.records import Record, read_config
from steadynorm.surgery.flow.trial import run

__all__ = ["Logits", "Source", "as_logits", "is_built", "load_source", "trained_on"]


FOREIGN = (".pt", ".pth", ".ckpt", ".bin")
"""Extensions of files that torch.save wrote."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model and its name."""

    model: nn.Module
    """Takes a float32 tensor of shape (N, 3, H, W), gives one of shape (N, classes)."""
    name: str
    """For people."""
    weights: str = ""
    """What was read from a weights file, in one sentence; empty without one."""


def is_built(what: str) -> bool:
    """Return whether a source is a function that builds a model, rather than a checkpoint."""
    return ":" in what and not what.endswith(".safetensors")


def trained_on(what: str) -> Record | None:
    """Return the record, without its cells, of a checkpoint's run; None if there is none."""
    if is_built(what):
        return None
    try:
        record = read_config(Path(what).parent.parent)
    except (UserError, OSError):
        return None
    return record if "data" in record.config else None


def load_source(
    what: str,
    *,
    weights: Path | None,
    key: str | None = None,
    may_lack: Collection[str] = (),
    code: Collection[str] = (),
) -> Source:
    """Load a model.

    Args:
        what: path of a checkpoint of our experiments, or ``package.module:function`` that builds a model.
        weights: a file of weights, see :func:`steadynorm.lab.weights.load_weights`; for a built model only, and only
            where the function does not load them itself.
        key: where in that file they are.
        may_lack: see :func:`steadynorm.lab.weights.load_weights`.
        code: what a checkpoint may call, see :func:`steadynorm.lab.checkpoint.load_checkpoint`.

    Returns:
        the model and its name.

    Raises:
        UserError: the model cannot be found, imported or built, or the tensors do not match it.
    """
    if not is_built(what) and Path(what).suffix in FOREIGN:
        raise UserError(
            f"{what}: is not a checkpoint of an experiment. Give a function that builds the model, and this file by "
            f"--weights: PACKAGE.MODULE:FUNCTION --weights {what}"
        )
    if not is_built(what):
        if not what.endswith(".safetensors") and not Path(what).exists():
            raise UserError(
                f"{what}: there is no such file. Give a .safetensors file of a run's checkpoints, or a function that "
                "builds the model: PACKAGE.MODULE:FUNCTION"
            )
        if weights is not None:
            raise UserError(f"--weights: {what} is a checkpoint, which has its own weights. Drop the flag.")
        from steadynorm.lab.arms import arm_label
        from steadynorm.lab.checkpoint import load_checkpoint

        found = load_checkpoint(Path(what), code=code)
        return Source(model=found.model, name=f"{found.network} with {arm_label(found.arm)}")
    model = _build(what)
    read = "" if weights is None else load_weights(model, weights, key=key, may_lack=may_lack)
    return Source(model=model, name=what, weights=read)


def as_logits(model: nn.Module, example: Tensor, *, advice: str = "") -> nn.Module:
    """Wrap a model whose output is not a tensor.

    Args:
        model: the model, left unchanged by the trial run.
        example: images for the trial run.
        advice: what to do if the model fails on them.

    Raises:
        UserError: it needs more than one input, fails on the example, or gives nothing of shape (N, classes).
    """
    needed = _needed_inputs(model)
    if len(needed) > 1:
        raise UserError(
            f"the model needs {len(needed)} inputs ({', '.join(needed)}), and a file takes one. "
            "Wrap it in a module that makes the others."
        )
    wrapped = model
    try:
        output = run(wrapped, example)
        if not isinstance(output, Tensor):
            wrapped = Logits(model)
            output = run(wrapped, example)
    except Exception as error:  # a model's forward may raise anything
        size = "x".join(str(each) for each in example.shape[1:])
        told = f"the model failed on images of {size} with {one_line(error)}{line_of(error)}. {advice}"
        raise UserError(told.rstrip()) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(example):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"the model must give a row of numbers for each image, got {shape} for {len(example)} images.")
    return wrapped


def _needed_inputs(model: nn.Module) -> list[str]:
    """Name the arguments of a forward without a default."""
    try:
        found = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # of a script
        return []
    needed = (each for each in found if each.default is each.empty)
    return [each.name for each in needed if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def _build(what: str) -> nn.Module:
    model = call_function(what)
    if not isinstance(model, nn.Module):
        raise UserError(f"{what}: must return a torch.nn.Module, got {type(model).__name__}.")
    return model
