"""Write a diagnosis to files."""

from __future__ import annotations

import json

from steadynorm.checkup.config import DoctorConfig
from steadynorm.reporting.diagnosis import Examination, as_content
from steadynorm.reporting.diagnosis_page import diagnosis_page
from steadynorm.reporting.files import write_text

__all__ = ["write_files"]


def write_files(config: DoctorConfig, found: Examination) -> None:
    """Write the files of ``--json``, ``--sarif`` and ``--html``, each atomically.

    Raises:
        OSError: a file cannot be written.
    """
    for path in config.json or ():
        write_text(path, json.dumps(as_content(found), indent=2, allow_nan=False) + "\n")
    if config.sarif is not None:
        write_text(config.sarif, found.diagnosis.to_sarif())
    if config.html is not None:
        write_text(config.html, diagnosis_page(found))
