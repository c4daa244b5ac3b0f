"""Find the modules under activation checkpointing, by their flags and their code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch.utils.checkpoint
from torch import nn

__all__ = ["all_names", "run_again"]

_FLAGS = ("gradient_checkpointing", "grad_checkpointing", "memory_efficient", "with_cp")
"""Flags with which transformers, timm, torchvision and OpenMMLab enable it."""
_CALLED = (torch.utils.checkpoint.checkpoint, torch.utils.checkpoint.checkpoint_sequential)


def run_again(model: nn.Module) -> set[nn.Module]:
    """Return the checkpointed modules: those with a flag, and those that a forward passes to torch.utils.checkpoint.

    A method that reads a flag of its module which is False counts as disabled. If the code does not tell which part
    is checkpointed (a local variable, for instance), the whole module counts.
    """
    found: set[nn.Module] = set()
    calls = {kind: _calls_of(kind) for kind in {type(module) for module in model.modules()}}
    for module in model.modules():
        flags = [vars(module)[flag] for flag in _FLAGS if isinstance(vars(module).get(flag), bool)]
        if any(flags) or type(module).__name__ == "CheckpointWrapper" or _is_replaced(vars(module).get("forward")):
            found.add(module)
        elif not flags:
            for given, read in calls[type(module)]:
                if not any(vars(module).get(name) is False for name in read if name != "training"):
                    found |= {module._modules.get(name) or module for name in given}
    return found


def _is_replaced(forward: object) -> bool:
    """Return whether a forward set on an instance is torch.utils.checkpoint's or calls it."""
    if isinstance(forward, partial):
        return forward.func in _CALLED
    return isinstance(forward, FunctionType) and _calls(forward)


def _calls(function: FunctionType) -> bool:
    """Return whether a function reads torch.utils.checkpoint's functions from its globals or closure."""
    names = all_names(function.__code__)
    held = inspect.getclosurevars(function)
    known = {**held.globals, **held.nonlocals}
    return any(known.get(name) in _CALLED for name in names if callable(known.get(name))) or (
        "checkpoint" in names and torch.utils.checkpoint in known.values()
    )


def _calls_of(kind: Any) -> list[tuple[frozenset[str], frozenset[str]]]:  # noqa: ANN401 (a class of modules)
    """Return, for each method that calls it, the attributes passed to it ("" for anything else) and all those read.

    Only methods that forward reaches count: others, such as one that enables it, recompute nothing.
    """
    own = [each for each in reversed(kind.__mro__) if not each.__module__.startswith("torch.") and each is not object]
    methods = {name: each for one in own for name, each in vars(one).items() if callable(each)}
    functions = {name: inspect.unwrap(each) for name, each in methods.items()}
    reached, waiting = dict[str, FunctionType](), ["forward", "__call__"]
    while waiting:
        name = waiting.pop()
        function = functions.get(name)
        if name not in reached and isinstance(function, FunctionType):
            reached[name] = function
            waiting += all_names(function.__code__)
    read = [_calls_in(each) for each in reached.values() if any("checkpoint" in n for n in all_names(each.__code__))]
    return [each for each in read if each[0]]


def all_names(code: CodeType) -> set[str]:
    """Return the names that a function, or a function within it, reads; cheaper than parsing."""
    within = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(all_names, within))


def _calls_in(function: FunctionType) -> tuple[frozenset[str], frozenset[str]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):  # typed into a shell, or generated
        return frozenset(), frozenset()
    known = function.__globals__ | dict(_imported(tree))
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call) and _value(each.func, known) in _CALLED]
    given = frozenset(_attribute(each.args[0]) if each.args else "" for each in calls)
    return given, frozenset(_attribute(each) for each in ast.walk(tree)) - {""}


def _imported(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Return what a function itself imports from torch.utils."""
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and each.module in ("torch.utils", "torch.utils.checkpoint"):
            source: Any = torch.utils if each.module == "torch.utils" else torch.utils.checkpoint
            yield from ((name.asname or name.name, getattr(source, name.name, None)) for name in each.names)


def _value(node: ast.expr, known: dict[str, Any]) -> object:
    """Return the object of a dotted name; None if unknown."""
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, known), node.attr, None)
    return known.get(node.id) if isinstance(node, ast.Name) else None


def _attribute(node: ast.AST) -> str:
    """Return the name of an attribute of ``self``; empty for anything else."""
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if own else ""  # type: ignore[attr-defined]
