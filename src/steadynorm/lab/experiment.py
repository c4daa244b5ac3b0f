"""What the commands of all experiments share: configuration on disk, the start, the stop, and going on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch

from steadynorm.lab.data import Dataset, Images
from steadynorm.lab.failure import UserError
from steadynorm.lab.machine import choose_device, choose_precision, describe_machine, describe_versions
from steadynorm.lab.progress import Display
from steadynorm.lab.records import Record

__all__ = ["check_no_repeats", "check_same", "describe", "explain_stop", "flag", "new_place", "stored_config"]


ConfigT = TypeVar("ConfigT", bound=Any)

NOT_STORED = ("out", "resume", "json")  # where results go and how they are shown; not what is computed
BESIDE_RESUME = ("resume", "json", "data_dir")  # flags that do not change a stored experiment


def describe(name: str, config: Any, dataset: Dataset) -> Record:  # noqa: ANN401 (any experiment's dataclass)
    """Make the record that an experiment begins with, every ``auto`` resolved."""
    device = choose_device(config.device)
    return Record(
        experiment=name,
        command=_command(name, config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config={key: _to_json(value) for key, value in _stored_values(config).items()},
        resolved={
            "device": device.type,
            "precision": choose_precision(config.precision, device),
            "threads": torch.get_num_threads(),
            "train_images": len(dataset.train),
            "validation_images": len(dataset.validation),
            "classes": list(dataset.classes),
            "data_sha256": _digest(dataset),
        },
        versions=describe_versions(),
        machine=describe_machine(device),
    )


def stored_config(given: ConfigT, record: Record) -> ConfigT:
    """Give the configuration that the run directory began with.

    Raises:
        UserError: a flag beside --resume would contradict it.
    """
    default = type(given)()
    changed = [f.name for f in dataclasses.fields(given) if getattr(given, f.name) != getattr(default, f.name)]
    extra = [flag(name) for name in changed if name not in BESIDE_RESUME]
    if extra:
        raise UserError(f"--resume: continues with the stored configuration. Drop {' '.join(extra)}.")
    types = get_type_hints(type(given))
    values = {name: _from_json(value, types[name]) for name, value in record.config.items() if name in types}
    stored: ConfigT = dataclasses.replace(default, **values)
    if given.data_dir is not None:
        stored = dataclasses.replace(stored, data_dir=given.data_dir)
    return stored


def check_same(stored: Record, now: Record, display: Display) -> None:
    """Refuse other data or arithmetic; say where other versions or another machine may change the last digits.

    Raises:
        UserError: data, precision or device are not those the experiment began with.
    """
    if stored.resolved["data_sha256"] != now.resolved["data_sha256"]:
        raise UserError("--resume: the data set is not the one that the experiment began with. Give its --data-dir.")
    for name in ("precision", "device"):
        if stored.resolved[name] != now.resolved[name]:
            raise UserError(
                f"--resume: the experiment began with {name} {stored.resolved[name]}, "
                f"this machine gives {now.resolved[name]}. Resume where it began."
            )
    if (stored.versions, stored.machine) != (now.versions, now.machine):
        display.message("resumed with other versions or on another machine: the last digits may differ")


def check_no_repeats(config: Any, names: Sequence[str]) -> None:  # noqa: ANN401 (any experiment's dataclass)
    """Refuse a list that names a value twice: the two would be one run.

    Raises:
        UserError: so it is.
    """
    for name in names:
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise UserError(f"{flag(name)}: every value may appear once, got {' '.join(map(str, values))}.")


def new_place(name: str) -> Path:
    """Name a new run directory by the time of day."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def flag(name: str) -> str:
    """Give the command-line flag of a configuration field."""
    return f"--{name.replace('_', '-')}"


@contextlib.contextmanager
def explain_stop(name: str, place: Path, display: Display) -> Iterator[None]:
    """Say how to go on after Ctrl-C, or after a disk that took no more.

    Raises:
        UserError: a file could not be written.
    """
    resume = shlex.join(["steadynorm", name, "--resume", str(place)])
    try:
        yield
    except KeyboardInterrupt:
        display.message(f"interrupted; continue behind the last finished epoch with: {resume}")
        raise
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or error}. Mend that, then continue with: {resume}") from error


def _stored_values(config: Any) -> dict[str, Any]:  # noqa: ANN401 (any experiment's dataclass)
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in NOT_STORED}


def _command(name: str, config: Any) -> str:  # noqa: ANN401 (any experiment's dataclass)
    """Give the shell command that repeats the experiment."""
    words = ["steadynorm", name]
    default = type(config)()
    for key, value in _stored_values(config).items():
        if value == getattr(default, key):
            continue
        words.append(flag(key))
        if not isinstance(value, bool):
            words += [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def _to_json(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _from_json(value: Any, kind: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if value is not None and Path in (kind, *get_args(kind)) else value


def _digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation):
        for part in _parts(split):
            digest.update(part.numpy().data)
    return digest.hexdigest()


def _parts(split: Images) -> tuple[torch.Tensor, torch.Tensor]:
    return split.pixels.permute(0, 2, 3, 1).contiguous(), split.labels.contiguous()
