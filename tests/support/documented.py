"""The records in ``docs/results/``: summaries, the records behind them, and whether two summaries are equal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from docs._site.gallery import RESULTS, export_of, record_of

from steadynorm.reporting.records import HEAD

__all__ = ["check_close", "check_equals", "content_of", "export_of", "few_values", "record_of"]


def content_of(name: str) -> dict[str, Any]:
    """Read a record's ``summary.json``."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def few_values(spread: dict[str, float]) -> list[float]:
    """Give the one to three values that have this lowest, highest and mean value."""
    low, high, n = spread["low"], spread["high"], int(spread["n"])
    return [low, high, n * spread["mean"] - low - high][:n]


def check_equals(found: dict[str, Any], content: dict[str, Any]) -> None:
    """Hold a summary against one in docs: cells, verdicts and digits exactly, findings to 1e-9; no sentences."""
    assert found["finished"] == content["finished"]
    assert found["table"]["rows"] == content["table"]["rows"]
    judged = [[(one["verdict"], _digits(one["measured"])) for one in each["expectations"]] for each in (found, content)]
    assert judged[0] == judged[1]
    for name in content.keys() - {"headline", "table", "expectations", "runs", *HEAD}:
        check_close(found[name], content[name], name)
    assert len(found["headline"]) <= 90


def _digits(sentence: str) -> list[str]:
    """Give the numbers of a sentence; what stands in brackets names something."""
    return re.findall(r"[-+]?\d[\d.,]*\d|\d", re.sub(r"\([^)]*\)", "", sentence))


def check_close(found: Any, expected: Any, place: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name in expected:
            check_close(found[name], expected[name], f"{place}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            check_close(one, other, f"{place}/{number}")
    else:
        assert found == (pytest.approx(expected, abs=1e-9) if isinstance(expected, float) else expected), place
