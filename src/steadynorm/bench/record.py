"""The record of a run: machine, versions and time of the measurement, in a file of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from steadynorm.lab.machine import reuse_memory
from steadynorm.reporting.environment import describe_machine, describe_versions
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import command_of

__all__ = ["Json", "begin_record", "read_record", "write_record"]

PACKAGES = ("torch", "numpy", "numba", "triton")

Json = dict[str, Any]
"""A record of a bench, or a part of one."""


def begin_record(
    bench: str,
    command: str,
    config: Any,  # noqa: ANN401 (any command's dataclass)
    device: torch.device,
) -> Json:
    """Make the head of a record, and let the process reuse memory, as all commands do.

    Args:
        bench: name of the benchmark.
        command: ``steadynorm bench COMMAND`` repeats it.
        config: a dataclass of flags, all with defaults.
        device: device of the measurement.
    """
    versions = describe_versions(PACKAGES)
    return {
        "bench": bench,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_of(f"bench {command}", config),
        "commit": _commit(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "allocator_reuses_memory": reuse_memory(),
        "machine": describe_machine(device),
        "versions": {name: versions.get(name) for name in ("python", "steadynorm", *PACKAGES)},
        "config": {
            name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
        },
    }


def write_record(directory: Path, record: Json) -> Path:
    """Write ``bench_<bench>_<device>_<yyyymmdd>.json``, with a number appended if that file exists."""
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
        except OSError as error:  # such as a full disk
            path.unlink()
            error.filename = str(path)
            raise
        return path


def _lay_out(record: Json) -> str:
    """Write a record as JSON with a case per line: small, but readable and comparable."""
    plain = json.loads(json.dumps(record), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    items = []
    for key, value in plain.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(each) for each in value) + "\n ]"
        items.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(items) + "\n}"


def read_record(path: Path) -> Json:
    """Read a record back.

    Raises:
        UserError: the file is not a bench record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a bench record: {error}.") from error
    if not isinstance(record, dict) or "bench" not in record:
        raise UserError(f"{path}: is not a bench record. Give a file that --out has written.")
    return record


def _commit() -> str | None:
    """Return the commit of the running code; None without version control."""
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
