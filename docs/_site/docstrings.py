"""Docstrings as the site shows them: examples as code, roles as links, no private parameters."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import griffe

EXAMPLE = re.compile(r"(?m)^(?P<indent> *)>>> .*\n(?:(?P=indent)(?=\S).*\n?)*")
"""From a prompt to the next empty line."""
SOURCE = Path(__file__).parents[2] / "src"
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(?P<name>[\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites docstrings and signatures before the pages are made."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence examples and link roles."""
        if obj.docstring:
            text = ROLE.sub(partial(_link, obj), obj.docstring.value + "\n")
            obj.docstring.value = EXAMPLE.sub(_fenced, text).rstrip()

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Hide private parameters, and private fields, of which a dataclass's parameters are made afterwards."""
        _hide_private(pkg)


def _link(obj: griffe.Object, match: re.Match[str]) -> str:
    """Link a name to where the reference shows it; it stays code where no page does."""
    name = match["name"]
    try:
        target = name if name.startswith("steadynorm.") else obj.resolve(name)
    except griffe.NameResolutionError:
        target = name
    last = target.rpartition(".")[2]
    if (SOURCE / target.replace(".", "/")).with_suffix(".py").exists():  # the function, not the module of that name
        target = f"{target}.{last}"
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'


def _fenced(match: re.Match[str]) -> str:
    indent = match["indent"]
    return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"


def _hide_private(obj: griffe.Object) -> None:
    for name, member in list(obj.members.items()):
        if isinstance(member, griffe.Function):
            member.parameters = griffe.Parameters(*(each for each in member.parameters if each.name[0] != "_"))
        elif isinstance(member, griffe.Module | griffe.Class):
            _hide_private(member)
        elif isinstance(obj, griffe.Class) and name.startswith("_"):
            del obj.members[name]
