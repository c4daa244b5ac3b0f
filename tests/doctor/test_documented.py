"""The list of checks in docs/doctor.md is the registry's."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

from steadynorm.doctor import CHECKS
from steadynorm.doctor.check import Check
from steadynorm.reporting.diagnosis import checks_as_markdown

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()


def test_the_page_lists_every_check_as_its_file_has_it() -> None:
    (listed,) = re.findall(r"<!-- checks -->\n(.*?)<!-- /checks -->", PAGE, flags=re.DOTALL)
    assert listed == checks_as_markdown(), "write checks_as_markdown() between the marks of docs/doctor.md"


def test_a_row_has_name_title_and_what_the_check_needs() -> None:
    rows = checks_as_markdown().splitlines()[2:]
    assert len(rows) == len(CHECKS)
    assert "| `train-eval-gap` | Evaluation that is worse than with the batches' own statistics. | `--data` with" in (
        "\n".join(rows)
    )


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.name)
def test_a_check_says_whether_it_only_gives_notes(check: Check) -> None:
    source = inspect.getsource(sys.modules[check.run.__module__])
    (row,) = [each for each in checks_as_markdown().splitlines() if each.startswith(f"| `{check.name}` ")]
    assert check.only_notes == (set(re.findall(r"\bSeverity\.(\w+)", source)) == {"NOTE"})
    assert check.only_notes == row.endswith("| a note |")
    assert check.only_notes == ("Always a note." in check.explain())
