"""Results of an export, and their record on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import write_text
from steadynorm.reporting.records import decoded

__all__ = ["Artifact", "Latency", "Outcome", "as_content", "read_outcome", "write_outcome"]

FILE = "artifacts.json"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of requests of one image."""

    requests: int
    p50: float
    p90: float
    p99: float
    p95: float | None = None
    """None in older records, which did not measure it."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that serves the model, or eager torch for comparison."""

    name: str
    """Display name: format and quantisation."""
    format: str
    quantize: str
    file: str = ""
    """Name in the directory; empty if there is no file."""
    note: str = ""
    """What it holds."""
    refused: str = ""
    """Why there is no file."""
    mib: float | None = None
    """Size of the file."""
    load_ms: float | None = None
    """Time until the fresh process could answer, including the import of the runtime."""
    largest_error: float | None = None
    """Largest absolute error of an output against the eager model's."""
    relative_error: float | None = None
    """That, divided by the largest magnitude of the eager model's outputs."""
    agreement: float | None = None
    """Fraction of images with the eager model's top class."""
    accuracy: float | None = None
    """Accuracy in [0, 1]; None if the model's classes are not the data's."""
    latency: Latency | None = None
    images_per_second: dict[str, float] = field(default_factory=dict)
    """Batch size -> median."""
    peak_mib: float | None = None
    """Peak memory of a process that answered single images, including the runtime."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Complete result of an export."""

    model: str
    """Name of the exported model."""
    parameters: int
    norms: int
    """Batch norms of the model."""
    steps: tuple[str, ...]
    """Steps before the first file was written, one sentence each."""
    artifacts: tuple[Artifact, ...]
    """Eager torch first, then every format and quantisation."""
    directory: Path = Path()
    """Where the files are; not part of the record."""

    def of(self, format: str, quantize: str = "none") -> Artifact:
        """Return the artifact of a format and quantisation.

        Raises:
            KeyError: the export did not include it.
        """
        for one in self.artifacts:
            if (one.format, one.quantize) == (format, quantize):
                return one
        raise KeyError((format, quantize))

    def path(self, artifact: Artifact) -> Path | None:
        """Return the path of an artifact's file; None if it has none."""
        return self.directory / artifact.file if artifact.file else None


def as_content(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON data."""
    content = asdict(outcome)
    del content["directory"]
    return content


def write_outcome(outcome: Outcome) -> None:
    """Write ``artifacts.json`` into the directory of the files."""
    write_text(outcome.directory / FILE, json.dumps(as_content(outcome), indent=2) + "\n")


def read_outcome(directory: Path) -> Outcome:
    """Read the ``artifacts.json`` of an export.

    Args:
        directory: the directory that :func:`steadynorm.deploy.export` wrote.

    Returns:
        the Outcome.

    Raises:
        UserError: the file is absent or damaged, or has a value of another type.
    """
    try:
        outcome: Outcome = decoded(directory / FILE, Outcome)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / FILE}: is not the record of an export ({error}).") from error
    return replace(outcome, directory=directory)
