"""Write events as JSON lines to standard output, for other programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from steadynorm.reporting.report import plain

__all__ = ["drop_output", "send_line"]


def send_line(kind: str, content: Mapping[str, Any]) -> None:
    """Write one line of JSON, at once: numbers or null, never NaN.

    Args:
        kind: kind of event, the first entry.
        content: the other entries.

    Raises:
        BrokenPipeError: nobody reads any more; nothing that is printed later raises it again.
    """
    line = json.dumps({"kind": kind, **plain(dict(content))}, allow_nan=False)
    try:
        print(line, flush=True)
    except BrokenPipeError as error:
        drop_output()
        raise BrokenPipeError(error.errno, "its reader has closed it", "standard output") from error


def drop_output() -> None:
    """Discard remaining output, which Python would otherwise fail to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
