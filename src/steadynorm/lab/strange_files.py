"""Recognize by its first bytes a file that was given as weights but holds none."""

from __future__ import annotations

import codecs
import tarfile
import zipfile
from itertools import islice
from pathlib import Path

from steadynorm.printable import printable
from steadynorm.reporting.words import listing

__all__ = ["why_strange"]

COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes -> compression."""
POINTER = b"version https://git-lfs.github.com"
HDF5 = b"\x89HDF\r\n"
LOOKED_AT = 512
LISTED = 3
CHARACTERS = 40


def why_strange(path: Path) -> str | None:
    """Describe a file that holds no weights, and what to do about it; None if it may hold weights.

    Args:
        path: path of an ordinary file.
    """
    with path.open("rb") as file:
        head = file.read(LOOKED_AT)
    if not head:
        return "is empty. Copy or download it again."
    if not head.strip(b"\0"):
        return "begins with zeros alone, so it was not written to its end. Copy or download it again."
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed by {name}. Unpack it, and give the file of weights in it."
    if head.startswith(HDF5):
        return "is an HDF5 file, as Keras writes it. Give what torch.save or safetensors wrote."
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:32]):
        return "is an ONNX graph, which does not keep the model's names. Give what torch.save or safetensors wrote."
    if head.startswith(b"PK"):
        return _why_strange_archive(path)
    return _why_text(head) or _why_tar(path)


def _why_strange_archive(path: Path) -> str | None:
    """Describe a zip archive, the format of torch.save."""
    if not zipfile.is_zipfile(path):
        return "is cut off: its end is missing. Copy or download it again."
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}
    if "data.pkl" in inner:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return (
            "is an .npz file of NumPy. Save it as safetensors: "
            "safetensors.numpy.save_file(dict(numpy.load(path)), new)."
        )
    if any(name.endswith(".json") and "models/" in name for name in inner):
        return (
            "is a program that torch.export wrote. Save its weights: "
            "torch.save(torch.export.load(path).state_dict, new)."
        )
    return f"is a zip archive of {_some(names)}. Unpack it, and give the file of weights in it."


def _why_text(head: bytes) -> str | None:
    """Describe a file that may be text."""
    if head.startswith(POINTER):
        return "is a pointer of git-lfs in place of the file. Run git lfs pull where it was cloned."
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head).strip()  # the bytes read may end within a character
    except UnicodeDecodeError:
        return None
    if not all(each.isprintable() or each.isspace() for each in text):
        return None
    if text.startswith("<"):
        return "is a web page instead of the file. Open the page, and download the file that it links to."
    start = " ".join(text.split())[:CHARACTERS]
    return f"is text that begins with {printable(start)!r}. Give what torch.save or safetensors wrote."


def _why_tar(path: Path) -> str | None:
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member in islice(archive, LISTED + 1)]
    except tarfile.TarError:
        return None
    if "storages" in names:
        return (
            "is a file of torch before 0.1.11, which is not read, since that could run code. Save the weights again "
            "with a newer torch: torch.save(model.state_dict(), path)."
        )
    return f"is a tar archive of {_some(names)}. Unpack it, and give the file of weights in it."


def _some(names: list[str]) -> str:
    return listing([*names[:LISTED], *(["more"] if len(names) > LISTED else [])])
