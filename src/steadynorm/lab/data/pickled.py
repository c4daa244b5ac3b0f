"""Pickled data read as data: nothing in the file is imported, called or otherwise run.

Unpickling runs whatever a file asks for. This reader follows the few instructions that plain containers and
NumPy byte arrays are made of, and refuses every other one by name.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["read_pickled"]

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def read_pickled(content: bytes) -> Any:  # noqa: ANN401 - a file can hold any of the types below
    """Read a pickle made of dicts, lists, tuples, numbers, text, bytes and NumPy arrays of bytes.

    Reads protocols 2 to 4 as Python 2 and 3 write them. Strings of Python 2, which may be text or bytes, come
    back as text of one character per byte.

    Raises:
        ValueError: the content is damaged, or holds something else; nothing has been run then either.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, kw_only=True)
class _Global:
    """A name that a pickle would import, kept as a name."""

    module: str
    name: str


@dataclass(frozen=True, kw_only=True)
class _Blank:
    """An array or its element type before its content is known."""

    kind: str
    arguments: tuple[Any, ...]


@dataclass
class _Machine:
    """The stack machine that a pickle is written for, reduced to data."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401 - decided by the opcode
        """Follow one instruction."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._collect(name, argument)

    def _collect(self, name: str, argument: Any) -> None:  # noqa: ANN401
        match name:
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE":
                self.stack.append(tuple(self._pop_to_mark()))
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
                _expect(self.stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
                pairs = zip(items[::2], items[1::2], strict=True)
                _expect(self.stack[-1], dict).update(pairs)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case _:
                self._describe(name, argument)

    def _describe(self, name: str, argument: Any) -> None:  # noqa: ANN401
        """Follow the instructions that would import and call, by noting what they ask for."""
        match name:
            case "GLOBAL":
                self.stack.append(_allowed(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_allowed(*self._pop(2)))
            case "REDUCE":
                called, arguments = self._pop(2)
                self.stack.append(_described(_expect(called, _Global), _expect(arguments, tuple)))
            case "BUILD":
                built, state = self._pop(2)
                self.stack.append(_built(_expect(built, _Blank), _expect(state, tuple)))
            case _:
                raise ValueError(f"the pickle holds the instruction {name}, which plain data does not need")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self.marks.pop())


def _allowed(module: str, name: str) -> _Global:
    known = {*((module, "_reconstruct") for module in _ARRAY_MODULES), ("numpy", "ndarray"), ("numpy", "dtype")}
    if (module, name) not in {*known, ("_codecs", "encode")}:
        raise ValueError(f"the pickle asks for {module}.{name}, which plain data does not need")
    return _Global(module=module, name=name)


def _described(called: _Global, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
    if called.name == "encode":
        # How Python 3 writes bytes in protocol 2: as text of one character per byte.
        return str(arguments[0]).encode("latin-1")
    return _Blank(kind=called.name, arguments=arguments)


def _expect(value: Any, kind: type[Any]) -> Any:  # noqa: ANN401
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _built(blank: _Blank, state: tuple[Any, ...]) -> Any:  # noqa: ANN401
    if blank.kind == "dtype":
        return blank  # its state says how to read elements longer than a byte
    _, shape, dtype, column_major, content = state
    if blank.kind != "_reconstruct" or _expect(dtype, _Blank).arguments[0] not in ("u1", "|u1"):
        raise ValueError("the pickle holds an array of something other than bytes")
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")
