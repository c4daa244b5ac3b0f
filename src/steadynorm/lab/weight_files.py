"""Read a file of weights or a folder of shards without running pickled code."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from steadynorm.lab.strange_files import why_strange
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.words import listing

__all__ = ["find_file", "read_file"]

HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    types.SimpleNamespace,
    datetime.datetime,
    torch.torch_version.TorchVersion,
    pathlib.Path,
    pathlib.PurePath,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]
"""Types that training scripts save beside weights and whose construction runs no code. NumPy's scalars are excluded: a
pickle may give their type any memory layout."""
COMPRESSED_BYTES = 2**26
"""Bytes that an archive may have beyond its own size; torch.save compresses nothing, and TorchScript only its code."""
INDEX = ".index.json"
IN_FOLDERS = tuple(
    f"{name}{ending}"
    for ending in ("", INDEX)
    for name in ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
)
"""Names of the weights in a folder of Hugging Face's libraries, in their order of precedence."""
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
SHOWN = 3


def find_file(path: Path, where: str) -> Path:
    """Return the file of weights in a folder that Hugging Face's libraries wrote; a file is returned unchanged.

    Raises:
        UserError: the folder has no such file.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"{where}: is a directory {_instead(path)}")
    return found


def _instead(folder: Path) -> str:
    """Describe a folder that has no file of a known name."""
    if (folder / ".metadata").exists() and any(folder.glob("*.distcp")):
        return (
            "of torch.distributed.checkpoint. Make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} NEW.pth"
        )
    files = sorted(each.name for each in folder.iterdir() if each.suffix in ENDINGS)
    folders = sorted(each.parent.name for name in IN_FOLDERS for each in folder.glob(f"*/{name}"))
    if not files and not folders:
        return f"without weights: none of {', '.join(IN_FOLDERS[:2])} and files that end in {' '.join(ENDINGS)}."
    more = ", ..." if len(files or folders) > SHOWN else ""
    return f"without {listing(IN_FOLDERS[:2])}. Give one in it: {', '.join((files or folders)[:SHOWN])}{more}"


def read_file(path: Path, where: str) -> Any:  # noqa: ANN401 (a file may hold anything)
    """Read a file, or the shards of an index.

    Args:
        path: a ``.safetensors`` file, a file that torch.save wrote, or Hugging Face's index of such files; the content
            decides.
        where: beginning of every message.

    Raises:
        UserError: it cannot be read without running pickled code.
    """
    if path.name.endswith(INDEX) and path.is_file():
        return _read_shards(path, where)
    if path.exists() and not path.is_file():
        raise UserError(f"{where}: must be an ordinary file, since it is read twice. Copy its content into one.")
    try:
        if why := why_strange(path):
            raise UserError(f"{where}: {why}")
        _check_uncompressed(path, where)
        if _is_safetensors(path):
            return load_file(path)
        with (
            path.open("rb") as file,  # torch.load checks the ending of a name
            torch.serialization.safe_globals(HARMLESS),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # unknown content raises
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{where}: there is no such file.") from error
    except UserError:
        raise
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise UserError(f"{where}: {_why_unread(error)}") from error


def _read_shards(path: Path, where: str) -> dict[str, Tensor]:
    """Read the shards of an index from its folder."""
    try:
        files = json.loads(path.read_text())["weight_map"]
        names = sorted(set(files.values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard is in another folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: is no index of shards, with a weight_map ({one_line(error)}).") from error
    if absent := [name for name in names if not (path.parent / name).is_file()]:
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        raise UserError(f"{where}: {listing(absent[:SHOWN])}{more} of {len(names)} shards must lie beside it.")
    read: dict[str, Tensor] = {}
    for name in names:
        shard = read_file(path.parent / name, f"{where}: {name}")
        if not isinstance(shard, Mapping):
            raise UserError(f"{where}: {name}: must hold a state dict, got {type(shard).__name__}.")
        read.update(shard)
    return read


def _check_uncompressed(path: Path, where: str) -> None:
    """Refuse an archive whose content is far larger than itself, which could fill all memory.

    Raises:
        UserError: the archive is one.
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
    """Recognize safetensors by the brace of its header, or by the name if the content is not torch.save's either."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")))


def _why_unread(error: Exception) -> str:
    """Say why a file is not read; torch's own message advises to run its content."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"holds more than tensors, {found[1]}, and is not read, since that could run code. "
            "Save the weights alone: torch.save(model.state_dict(), path)."
        )
    if "TorchScript" in str(error):
        return "is a TorchScript archive. Save its weights: torch.save(torch.jit.load(path).state_dict(), new)."
    told = "its pickle is not torch's" if isinstance(error, pickle.UnpicklingError) else one_line(error)
    return f"is no file of weights, or not a whole one ({told}). Give what torch.save or safetensors wrote."
