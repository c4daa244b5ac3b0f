"""Docstrings as the site shows them: examples as code, and names without the roles that other tools want."""

from __future__ import annotations

import re

import griffe

EXAMPLE = re.compile(r"(?m)^(?P<indent> *)>>> .*\n(?:(?P=indent)(?=\S).*\n?)*")
"""From a prompt to the next empty line."""
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):(?=`)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence examples and drop roles."""
        if obj.docstring:
            text = ROLE.sub("", obj.docstring.value + "\n")
            obj.docstring.value = EXAMPLE.sub(_fenced, text).rstrip()


def _fenced(match: re.Match[str]) -> str:
    indent = match["indent"]
    return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"
