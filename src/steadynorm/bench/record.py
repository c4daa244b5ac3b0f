"""The record of a run: where, with what and when it was measured, in a file of its own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from steadynorm import __version__
from steadynorm.lab.machine import describe_machine, reuse_memory
from steadynorm.reporting.failure import UserError

__all__ = ["Record", "begin_record", "flag", "read_record", "write_record"]

PACKAGES = ("torch", "numpy", "numba", "triton")
NOT_MEASURED = ("out", "json")  # where results go and how they are shown

Record = dict[str, Any]


def begin_record(
    bench: str,
    command: str,
    config: Any,  # noqa: ANN401 (any command's dataclass)
    device: torch.device,
) -> Record:
    """Make the head of a record, and let the process reuse memory as every command does.

    Args:
        bench: name of the benchmark.
        command: ``steadynorm bench COMMAND`` repeats it.
        config: a dataclass of flags, all with defaults.
        device: what is measured on.
    """
    return {
        "bench": bench,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(command, config),
        "commit": _commit(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "allocator_reuses_memory": reuse_memory(),
        "machine": describe_machine(device),
        "versions": {"python": platform.python_version(), "steadynorm": __version__}
        | {name: _version(name) for name in PACKAGES},
        "config": {
            name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
        },
    }


def write_record(directory: Path, record: Record) -> Path:
    """Write ``bench_<bench>_<device>_<yyyymmdd>.json``, with a number after it where that file exists."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"bench_{record['bench']}_{record['device']}_{datetime.fromisoformat(record['created']):%Y%m%d}"
    number = 1
    while True:
        path = directory / (f"{name}.json" if number == 1 else f"{name}_{number}.json")
        try:
            file = path.open("x", encoding="utf-8")  # neither a file nor a link of that name is written to
        except FileExistsError:
            number += 1
            continue
        try:
            with file:
                file.write(_lay_out(record) + "\n")
        except OSError as error:  # a disk that is full
            path.unlink()
            error.filename = str(path)
            raise
        return path


def _lay_out(record: Record) -> str:
    """Write a record as JSON with a case per line: as small as it gets while it can still be read and compared."""
    plain = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    items = []
    for key, value in plain.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(each) for each in value) + "\n ]"
        items.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(items) + "\n}"


def read_record(path: Path) -> Record:
    """Read a record back.

    Raises:
        UserError: the file is not the record of a bench.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not the record of a bench: {error}.") from error
    if not isinstance(record, dict) or "bench" not in record:
        raise UserError(f"{path}: is not the record of a bench. Give a file that --out has written.")
    return record


def _command(command: str, config: Any) -> str:  # noqa: ANN401 (as above)
    """Give the shell command that repeats the measurement."""
    words = ["steadynorm", "bench", command]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in NOT_MEASURED:
            continue
        if "Positional" in str(field.type):
            words.append(str(value))
            continue
        words.append(flag(field.name))
        if not isinstance(value, bool):
            words += [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def flag(field: str) -> str:
    """Give the flag of a field."""
    return f"--{field.replace('_', '-')}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Name the commit that the running code belongs to; None where it is under no version control."""
    code = Path(__file__).parents[1] / "__init__.py"
    try:
        git = ["git", "-C", str(code.parent)]
        subprocess.run([*git, "ls-files", "--error-unmatch", code.name], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=12"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
