"""The help of one command, read from its dataclass of flags: in groups, with defaults and examples."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, Union

import tyro

from steadynorm._overview import columns, entry, heading, wrapped

__all__ = ["GROUPS", "Flag", "command_help", "flags_of"]

GROUPS = {
    "Data": """
        data data_dir columns image_size input_size validation_share train_images mean std augment reference clean
    """,
    "Network": "network depth widths arms weights weights_key code checkpoint checkpoint_key",
    "Training": """
        epochs batch_size batch lr momentum weight_decay milestones optimizer schedule label_smoothing accumulate
        tune_lr warm_up
    """,
    "Machine": "device precision compile threads workers on address",
    "Output": "out resume save log json sarif html",
}
"""Heading -> fields; fields of no group belong to the command itself and come first."""
OWN = "This command"
AT = 26
WORDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag, or one word without a flag.

    Args:
        name: name as typed; without dashes for a positional word.
        field: field of the dataclass.
        value: placeholder of its value; empty for a switch.
        text: description with the default.
    """

    name: str
    field: str
    value: str
    text: str

    @property
    def is_word(self) -> bool:
        """Whether it is given without a flag before it."""
        return not self.name.startswith("--")


def command_help(prog: str, config: type[Any], examples: Sequence[str], output: TextIO) -> str:
    """Lay out the help of a command.

    Args:
        prog: the program and the command.
        config: its flags.
        examples: commands that a user may copy.
        output: stream that it will be written to; decides whether to style it.
    """
    width, flags = columns(), flags_of(config)
    words = [each for each in flags if each.is_word]
    shown = (f"[{each.value}]" if "efault:" in each.text else each.value for each in words)
    lines = wrapped(f"usage: {prog} [FLAGS] {' '.join(shown)}".rstrip(), width)
    for paragraph in inspect.cleandoc(config.__doc__ or "").split("\n\n"):
        lines += ["", *wrapped(" ".join(paragraph.split()), width)]
    for title, members in _grouped(flags):
        lines += ["", heading(title, output)]
        for each in members:
            lines += entry(each.value if each.is_word else f"{each.name} {each.value}", each.text, width=width, at=AT)
    if examples:
        lines += ["", heading("Examples", output)]
        lines += [line for each in examples for line in _command_line(each, width)]
    return "\n".join(lines)


def _command_line(command: str, width: int) -> list[str]:
    """Lay out a command for copying: lines break before a flag, with the shell's backslash."""
    words = re.sub(r" (?!--)", "\N{NO-BREAK SPACE}", command)
    lines = textwrap.wrap(words, width - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    plain = [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
    return [*(f"  {line} \\" for line in plain[:-1]), f"  {plain[-1]}"]


def _grouped(flags: Sequence[Flag]) -> Iterator[tuple[str, list[Flag]]]:
    known = {field: title for title, fields in GROUPS.items() for field in fields.split()}
    if not {"lr", "epochs"} & {each.field for each in flags}:  # a command that does not train
        known = {field: title for field, title in known.items() if title != "Training"}
    yield from _where("Arguments", [each for each in flags if each.is_word])
    for title in (OWN, *GROUPS):
        yield from _where(title, [each for each in flags if not each.is_word and known.get(each.field, OWN) == title])
    yield "Help", [Flag(name="--help", field="help", value="", text="Show this help and exit.")]


def _where(title: str, members: list[Flag]) -> Iterator[tuple[str, list[Flag]]]:
    if members:
        yield title, members


def flags_of(config: type[Any]) -> list[Flag]:
    """Read the flags of a dataclass as tyro makes them, in the order of its fields."""
    types_of, texts = typing.get_type_hints(config, include_extras=True), _texts(config)
    return [
        _flag(field, types_of[field.name], texts.get(field.name, ""))
        for field in dataclasses.fields(config)
        if tyro.conf.Suppress not in getattr(types_of[field.name], "__metadata__", ())
    ]


def _flag(field: dataclasses.Field[Any], kind: Any, text: str) -> Flag:  # noqa: ANN401 (a type)
    said: tuple[Any, ...] = getattr(kind, "__metadata__", ())
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    value = next((each.metavar for each in said if getattr(each, "metavar", None)), None) or _value(plain)
    aliases = [name for each in said for name in getattr(each, "aliases", None) or ()]
    word = tyro.conf.Positional in said
    sentence = " ".join(text.split())
    if aliases:
        sentence += f" Also: {', '.join(aliases)}."
    return Flag(
        name=field.name if word else f"--{field.name.replace('_', '-')}",
        field=field.name,
        value=value or (field.name.upper() if word else ""),
        text=sentence + _default(field.default, sentence),
    )


def _default(value: Any, sentence: str) -> str:  # noqa: ANN401 (a default of any type)
    """Format the default, unless there is none or the sentence states it."""
    if value is dataclasses.MISSING or value is None or value is False or value == () or "efault:" in sentence:
        return ""
    words = value if isinstance(value, tuple) else (value,)
    return f" (default: {' '.join(map(str, words))})"


def _value(kind: Any) -> str:  # noqa: ANN401 (a type)
    """Return the placeholder for a value of a type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return ""
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, (_value(each) for each in inner if each is not type(None))))
    if origin is tuple:
        first = _value(inner[0])
        return f"{first} ..." if inner[-1] is Ellipsis else " ".join(_value(each) for each in inner)
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)).upper())


def _texts(config: type[Any]) -> dict[str, str]:
    """Read the string below each field, including inherited fields."""
    texts: dict[str, str] = {}
    for each in reversed(config.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(field.target, ast.Name):
                texts[field.target.id] = ast.literal_eval(after.value)
    return texts
