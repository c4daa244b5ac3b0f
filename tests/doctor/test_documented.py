"""The list of checks in docs/doctor.md is the registry's."""

from __future__ import annotations

import re
from pathlib import Path

from steadynorm.doctor import CHECKS
from steadynorm.reporting.diagnosis import checks_as_markdown

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()


def test_the_page_lists_every_check_as_its_file_has_it() -> None:
    (listed,) = re.findall(r"<!-- checks -->\n(.*?)<!-- /checks -->", PAGE, flags=re.DOTALL)
    assert listed == checks_as_markdown(), "write checks_as_markdown() between the marks of docs/doctor.md"


def test_a_row_has_name_title_and_what_the_check_needs() -> None:
    rows = checks_as_markdown().splitlines()[2:]
    assert len(rows) == len(CHECKS)
    assert (
        "| `train-eval-gap` | Evaluation is worse than the same batches with their own statistics. | `--data` with"
        in ("\n".join(rows))
    )
