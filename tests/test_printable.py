import pytest

from steadynorm.printable import printable
from steadynorm.reporting.failure import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("β ≤ 3\N{NO-BREAK SPACE}%, 'x' \\n", "β ≤ 3\N{NO-BREAK SPACE}%, 'x' \\n"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9b2Jb", r"a\x9b2Jb"),
        ("a\rb\tc\x00\x7f", r"a\rb\tc\x00\x7f"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", r"a\u202eb"),
        ("a\udc80b", r"a\udc80b"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_could_steer_a_terminal_is_shown_as_an_escape(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_a_users_error_is_one_printable_line() -> None:
    assert str(UserError("x: holds \x1b[31m\n   more\nand more")) == r"x: holds \x1b[31m more and more"
