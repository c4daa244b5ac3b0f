"""Weights for a built model, from whatever file people keep them in; no pickled code is run."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from steadynorm.reporting.failure import UserError, one_line
from steadynorm.surgery.checkpoints import NamedState, state_for, why_no_numbers

__all__ = ["load_weights", "read_weights"]

HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    pathlib.Path,
    pathlib.PurePath,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]
"""What training scripts keep beside weights and what runs nothing when it is built. NumPy's scalars are not among them:
a pickle may give their type any memory layout."""
HALF = (torch.float16, torch.bfloat16)
SHOWN = 3
COMPRESSED_BYTES = 2**26
"""That an archive may have beyond its own size; torch.save compresses nothing, and TorchScript its code alone."""


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

    Understood are ``.safetensors`` and what ``torch.save`` wrote (``.pt``, ``.pth``, ``.ckpt``, ``.bin``): a state
    dict, or one inside a checkpoint, by the model's names or by those that wrappers make of them; see
    :func:`steadynorm.surgery.checkpoints.state_for`.

    Args:
        model: is left as it is where the file does not fit.
        path: of the file.
        key: where in the file the weights are, with a dot between nested keys; None finds them.
        options: what errors call the two above.
        may_lack: last parts of names that the file need not have; the model then keeps its own. Counters of batches are
            never needed.

    Returns:
        what was read, how its names were understood, and what was left; a sentence.

    Raises:
        UserError: the file cannot be read without running pickled code, lacks a tensor of the model's or has it in
            another shape, or several parts of it fit and differ.
    """
    where = f"{options[0]}: {path}"
    loaded = read_weights(path, key=key, options=options)
    try:
        state = state_for(model, loaded, verb=where)
    except ValueError as error:
        choice = f" by {options[1]}" if key is None and "is meant" in str(error) else ""
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
    where = f"{options[0]}: {path}"
    loaded = _part(_read(path, where), key, f"{options[1]}: {path}")
    if not isinstance(loaded, Mapping):
        raise UserError(f"{where}: must hold a state dict, got {type(loaded).__name__}.")
    return loaded


def _read(path: Path, where: str) -> Any:  # noqa: ANN401 (a file may hold anything)
    if path.is_dir():
        raise UserError(f"{where}: is a directory. Give a file in it.")
    if path.exists() and not path.is_file():
        raise UserError(f"{where}: must be an ordinary file, since it is read twice. Copy its content into one.")
    try:
        _check_uncompressed(path, where)
        if _is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{where}: there is no such file.") from error
    except UserError:
        raise
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise UserError(f"{where}: {_why_unread(error)}") from error


def _check_uncompressed(path: Path, where: str) -> None:
    """Refuse an archive with far more in it than its own size, which could fill all memory.

    Raises:
        UserError: it is one.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        content = sum(part.file_size for part in archive.infolist())
    if content > path.stat().st_size + COMPRESSED_BYTES:
        raise UserError(
            f"{where}: must be a file as torch.save writes it, got a compressed archive, {content:,} bytes in "
            f"{path.stat().st_size:,}. Save the weights again: torch.save(model.state_dict(), path)."
        )


def _is_safetensors(path: Path) -> bool:
    """Tell by the name, or by the brace of the header after its length."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _why_unread(error: Exception) -> str:
    """Say why a file is not read; torch's own message advises to run what is in it."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"holds more than tensors, {found[1]}, and is not read, since that could run code. "
            "Save the weights alone: torch.save(model.state_dict(), path)."
        )
    if "TorchScript" in str(error):
        return "is a TorchScript archive. Save its weights: torch.save(torch.jit.load(path).state_dict(), new)."
    told = "its pickle is not torch's" if isinstance(error, pickle.UnpicklingError) else one_line(error)
    return f"is no file of weights, or not a whole one ({told}). Give what torch.save or safetensors wrote."


def _part(loaded: Any, key: str | None, where: str) -> Any:  # noqa: ANN401 (what a file held)
    for name in [] if key is None else key.split("."):
        if not isinstance(loaded, Mapping) or name not in loaded:
            names = _some([str(each) for each in loaded] if isinstance(loaded, Mapping) else [])
            raise UserError(f"{where} has no {key!r}. At {name!r} it has {names}.")
        loaded = loaded[name]
    return loaded


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
    told = [*wrong, *(f"{name} is of no use" for name in state.unknown), *misfits]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    raise UserError(f"{where}: does not fit the model: {'; '.join(told[:SHOWN])}{more}.")


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
