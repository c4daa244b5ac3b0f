"""Functions of the user's: found, called, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadynorm.lab.functions import find_named
from steadynorm.reporting.failure import UserError

BROKEN = {
    "syntax": ("def build(:", r"fails while it is imported \(SyntaxError: invalid syntax .*line 1\)\)\. Fix it\."),
    "name": ("layers = widths", r"fails while it is imported \(NameError: .*\)\. Fix it\."),
    "attribute": (
        "import math\nmath.nothing",
        r"fails while it is imported \(AttributeError: .*nothing.*\)\. Fix it\.",
    ),
    "import": ("import no_such_package_anywhere", r"cannot be imported \(ModuleNotFoundError: .*\)\."),
    "missing": ("other = 1", r"has no 'build'\."),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_module_that_cannot_be_imported_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, why = BROKEN[case]
    (tmp_path / f"users_{case}.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"^users_{case}: {why}") as failure:
        find_named(f"users_{case}:build")
    assert "\n" not in str(failure.value)
