"""What an export found, as it lies on disk."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import write_text

__all__ = ["Artifact", "Latency", "Outcome", "read_outcome", "write_outcome"]

FILE = "artifacts.json"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of requests of one image."""

    requests: int
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One way to serve the model: a file, or eager torch for comparison."""

    name: str
    """Format and way of quantising, for people."""
    format: str
    quantize: str
    file: str = ""
    """Name in the directory; empty of what is not kept."""
    note: str = ""
    """What it holds."""
    refused: str = ""
    """Why there is no such file, or none any more."""
    mib: float | None = None
    """Size of the file."""
    load_ms: float | None = None
    """Until the fresh process could answer, from the import of the runtime on."""
    largest_error: float | None = None
    """Of an output, against the eager model's."""
    relative_error: float | None = None
    """That, divided by the largest magnitude of the eager model's outputs."""
    agreement: float | None = None
    """Share of images with the eager model's top class."""
    accuracy: float | None = None
    """Share of images; None where the model's classes are not the data's."""
    latency: Latency | None = None
    images_per_second: dict[str, float] = dataclasses.field(default_factory=dict)
    """Batch size -> median."""
    peak_mib: float | None = None
    """Most memory of a process that answered single images, the runtime included."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that an export found."""

    model: str
    """What was exported."""
    parameters: int
    norms: int
    """Batch norms of the model."""
    steps: tuple[str, ...]
    """What was done before the first file was written, a sentence each."""
    artifacts: tuple[Artifact, ...]
    """Eager torch first, then every format and way."""


def write_outcome(directory: Path, outcome: Outcome) -> None:
    """Write ``artifacts.json``."""
    write_text(directory / FILE, json.dumps(dataclasses.asdict(outcome), indent=2) + "\n")


def read_outcome(directory: Path) -> Outcome:
    """Read ``artifacts.json``.

    Raises:
        UserError: it is absent or damaged.
    """
    try:
        content: dict[str, Any] = json.loads((directory / FILE).read_text())
        artifacts = [
            Artifact(**one | {"latency": None if one["latency"] is None else Latency(**one["latency"])})
            for one in content.pop("artifacts")
        ]
        return Outcome(**content | {"artifacts": tuple(artifacts), "steps": tuple(content["steps"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / FILE}: is not the record of an export ({error}).") from error
