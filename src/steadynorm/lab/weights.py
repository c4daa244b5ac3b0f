"""Weights for a built model, from whatever file people keep them in; no pickled code is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.lab.weight_files import find_file, read_file
from steadynorm.reporting.failure import UserError
from steadynorm.surgery.checkpoints import NamedState, named_behind, state_for, why_no_numbers

__all__ = ["STATISTICS", "load_weights", "read_weights"]

HALF = (torch.float16, torch.bfloat16)
SHOWN = 3
STATISTICS = ("running_mean", "running_var")
FLAGS = ("--weights", "--weights-key")


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    key: str | None = None,
    options: tuple[str, str] = FLAGS,
    may_lack: Collection[str] = (),
) -> str:
    """Load a file of weights into a model, in place.

    Understood are ``.safetensors`` and what ``torch.save`` wrote (``.pt``, ``.pth``, ``.ckpt``, ``.bin``), and a folder
    or an index of either as Hugging Face's libraries write it: a state dict, or one inside a checkpoint, by the model's
    names or by those that wrappers make of them; see :func:`steadynorm.surgery.checkpoints.state_for`.

    Args:
        model: is left as it is where the file does not fit.
        path: path of the file or the folder.
        key: where in the file the weights are, with a dot between nested keys and parts of names; None finds them.
        options: what errors call the two above.
        may_lack: last parts of names that the file need not have; the model then keeps its own. Counters of batches are
            never needed.

    Returns:
        what was read, how its names were understood, and what was left; a sentence.

    Raises:
        UserError: the file cannot be read without running pickled code, lacks a tensor of the model's or has it in
            another shape, or several parts of it fit and differ.
    """
    path = find_file(path, f"{options[0]}: {path}")
    where = f"{options[0]}: {path}"
    loaded = read_weights(path, key=key, options=options)
    try:
        state = state_for(model, loaded, verb=where)
    except ValueError as error:
        choice = f" with {options[1]}" if key is None and "Choose one" in str(error) else ""
        raise UserError(f"{str(error).rstrip('.')}{choice}.") from error
    own = model.state_dict()
    _check_fit(state, own, where, may_lack)
    model.load_state_dict(state.tensors, strict=False)
    return _understood(state, own, path)


def read_weights(path: Path, *, key: str | None = None, options: tuple[str, str] = FLAGS) -> Mapping[str, Any]:
    """Read a file of weights as it is, see :func:`load_weights`.

    Raises:
        UserError: it cannot be read without running pickled code, or holds no mapping.
    """
    path = find_file(path, f"{options[0]}: {path}")
    where = f"{options[0]}: {path}"
    loaded = _part(read_file(path, where), key, f"{options[1]}: {path}")
    if isinstance(loaded, list | tuple) and loaded and all(isinstance(each, Tensor) for each in loaded):
        raise UserError(
            f"{where}: must hold a state dict, got {len(loaded)} tensors without names. Copy them into the model's "
            "parameters with the tool that wrote them, and save its state dict."
        )
    if not isinstance(loaded, Mapping):
        raise UserError(f"{where}: must hold a state dict, got {type(loaded).__name__}.")
    return loaded


def _part(loaded: Any, key: str | None, where: str) -> Any:  # noqa: ANN401 (what a file held)
    """Take what is under a key: of nested mappings, or before the names of one.

    Raises:
        UserError: there is nothing.
    """
    at = loaded
    for name in [] if key is None else key.split("."):
        if isinstance(at, Mapping) and name in at:
            at = at[name]
        elif key is not None and isinstance(loaded, Mapping) and (behind := named_behind(loaded, key)):
            return behind
        else:
            names = _some([str(each) for each in at] if isinstance(at, Mapping) else [])
            raise UserError(f"{where} has no {key!r}. At {name!r} it has {names}.")
    return at


def _check_fit(state: NamedState, own: Mapping[str, Tensor], where: str, may_lack: Collection[str]) -> None:
    """Refuse weights that would leave the model unfinished.

    Raises:
        UserError: a tensor is missing, holds no numbers, or has another shape or kind of number than the model's.
    """
    wrong = [f"{name} is missing" for name in state.missing if name.rpartition(".")[2] not in may_lack]
    found = {name: why_no_numbers(each) or _misfit(each, own[name]) for name, each in state.tensors.items()}
    misfits = [f"{name} {why}" for name, why in found.items() if why]
    if not wrong and not misfits:
        return
    advice = "Build the model as it was when they were saved."
    if not misfits and all(name.rpartition(".")[2] in STATISTICS for name in state.missing):
        advice = "steadynorm recalibrate measures them on images."
    if not wrong and (
        other := _other_outputs({name: (state.tensors[name], own[name]) for name in found if found[name]})
    ):
        advice = f"Build the model for {other} outputs there, and change that layer after it is loaded."
    told = [*wrong, *(f"{name} is of no use" for name in state.unknown), *misfits]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    raise UserError(f"{where}: does not fit the model: {'; '.join(told[:SHOWN])}{more}. {advice}")


def _other_outputs(misfits: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """Return the number of outputs, classes as a rule, that a file is of where nothing else is otherwise; else 0."""
    shapes = [(given.shape, own.shape) for given, own in misfits.values()]
    outputs = {(given[0], own[0]) for given, own in shapes if given and own and given[0] != own[0]}
    other = next(iter(outputs), (0, 0))
    return int(other[0]) if len(outputs) == 1 and all(given[1:] == own[1:] for given, own in shapes) else 0


def _misfit(given: Tensor, own: Tensor) -> str:
    """Say why a tensor cannot take the place of the model's; nothing if it can."""
    if given.shape != own.shape:
        return f"has shape {tuple(given.shape)}, the model's {tuple(own.shape)}"
    if given.is_floating_point() != own.is_floating_point():
        return f"is {given.dtype}, the model's {own.dtype}"
    return ""


def _understood(state: NamedState, own: Mapping[str, Tensor], path: Path) -> str:
    parts = [f"{path}: {len(state.tensors)} of the model's {len(own)} tensors read", *state.notes]
    halves = {each.dtype for name, each in state.tensors.items() if each.dtype in HALF and own[name].dtype not in HALF}
    if halves:
        parts.append(f"stored there in {' and '.join(sorted(str(each).removeprefix('torch.') for each in halves))}")
    absent = [name for name in own if name not in state.tensors]
    if absent:  # counters of batches, which decide nothing in evaluation, and what may be lacking
        parts.append(f"not there: {_some(absent)}")
    if state.unknown:
        parts.append(f"not in the model, so left: {_some(state.unknown)}")
    return "; ".join(parts) + "."


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"
