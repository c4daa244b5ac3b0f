"""The text of an arm: a name or ``PACKAGE.MODULE:CLASS``, with optional settings and an optional label.

This module only reads the text. It imports no user code, so a report can name the arms of any record.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import file_word

__all__ = ["ArmText", "arm_label", "check_distinct", "parse_arm"]

LABELS = {
    "none": "no normalization",
    "self_tuned_batch_norm": "self-tuned batch norm",
    "torch_batch_norm": "torch's batch norm",
}
LONGEST = 80  # characters of an arm in a file name, which may have 255


@dataclass(frozen=True, kw_only=True)
class ArmText:
    """An arm's text, read."""

    text: str
    """The text itself."""
    label: str
    """Text before ``=``; empty if there is none."""
    target: str
    """A registered name, or ``PACKAGE.MODULE:CLASS``."""
    options: Mapping[str, Any]
    """Options given as ``,key=value``."""

    @property
    def calls_code(self) -> bool:
        """Whether it is a class of the user."""
        return ":" in self.target


def parse_arm(text: str) -> ArmText:
    """Read ``[LABEL=]TARGET[,KEY=VALUE...]``; values are Python literals, and a bare word is text.

    >>> parse_arm("wide=batch_renorm,r_max=2,running=self_tuned").options
    {'r_max': 2, 'running': 'self_tuned'}

    Raises:
        UserError: the text does not have this form.
    """
    head, comma, rest = text.partition(",")
    label, equals, target = head.rpartition("=")
    if equals and not re.fullmatch(r"\w[\w.+-]*", label):
        raise UserError(f"--arms: {text}: a label must be letters, digits and . _ + -, got {label!r}.")
    if not re.fullmatch(r"\w+|[\w.]+:[\w.]+", target):
        raise UserError(f"--arms: {text}: must be [LABEL=]NAME or [LABEL=]PACKAGE.MODULE:CLASS, then ,KEY=VALUE.")
    return ArmText(text=text, label=label, target=target, options=_options(text, rest) if comma else {})


def _options(text: str, rest: str) -> dict[str, Any]:
    """Read the settings. Python's grammar separates them; nothing is evaluated."""
    found = {}
    try:
        call = ast.parse(f"options({rest})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError(rest)
        for each in call.keywords:
            if each.arg is None or each.arg in found:
                raise ValueError(each.arg)
            value = each.value
            found[each.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(
            f"--arms: {text}: settings must be ,KEY=VALUE, each key once, with numbers, True, False, None or words "
            f"as values, got {rest!r}."
        ) from error
    if not found:
        raise UserError(f"--arms: {text}: there is nothing after the comma. Add KEY=VALUE, or drop the comma.")
    return found


def arm_label(arm: str) -> str:
    """Return a readable name of an arm; labels and plain names stay as they are."""
    try:
        found = parse_arm(arm)
    except UserError:
        return arm if "," in arm else arm.replace("_", " ")
    if found.label:
        return found.label.replace("_", " ")
    short = found.target.rpartition(":")[2]
    name = short if found.calls_code else LABELS.get(short, short.replace("_", " "))
    return ", ".join([name, *(each.strip() for each in arm.split(",")[1:])])


def check_distinct(arms: Sequence[str]) -> None:
    """Refuse arms that figures and files could not distinguish.

    Raises:
        UserError: an arm does not have the right form, two have the same name, or one is too long for a file name.
    """
    seen: dict[str, str] = {}
    for arm in arms:
        parse_arm(arm)
        if len(file_word(arm)) > LONGEST:
            raise UserError(f"--arms: {arm}: is longer than {LONGEST} characters. Give it a label: LABEL={arm}")
        for name in {arm_label(arm).lower(), file_word(arm).lower()}:
            if seen.get(name, arm) != arm:
                raise UserError(f"--arms: {seen[name]} and {arm} would have the same name. Label one: LABEL={arm}")
            seen[name] = arm
