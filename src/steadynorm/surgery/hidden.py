"""Find batch norms that a model runs or holds without registering them, so that no operation can change them.

A plain list, a dictionary, an attribute of another object, a closure: their modules are not in ``modules()``.
"""

from __future__ import annotations

import dis
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from steadynorm.surgery.kinds import is_batch_norm, why_unknown

__all__ = ["RunWatch", "held_norms"]

_TORCHS = frozenset(vars(nn.Module()))
_DEPTH = 3
_LONGEST = 10_000
"""Largest number of items in a container that is searched: a list of all samples holds no layers."""
_TRAINERS = frozenset(("lightning", "lightning_fabric", "pytorch_lightning"))
"""Packages whose modules hold their trainer, and through it averaged copies of themselves in other callbacks."""
_PLAIN = (str, bytes, int, float, complex, Tensor, type, ModuleType, type(None))


class RunWatch:
    """Records the batch norms that run in a model's forward, and restores the buffers of those outside the model.

    Args:
        model: the root, before any change.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {id(module) for module in model.modules()}
        self._thread = threading.get_ident()
        self._inside = 0
        self._ran: dict[int, nn.Module] = {}
        self._own_ran: set[int] = set()
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Begin to watch."""
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def stop(self) -> None:
        """Stop watching, and restore buffers."""
        for handle in self._handles:
            handle.remove()
        with torch.no_grad():
            for buffer, value in self._buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        self._buffers.clear()

    def ran(self, now: nn.Module) -> list[nn.Module]:
        """Return the batch norms that ran but were no submodules, neither before nor ``now``."""
        stand = {id(module) for module in now.modules()}
        return [module for key, module in self._ran.items() if key not in stand]

    def forget_own(self) -> None:
        """Forget which of the model's own modules have run so far."""
        self._own_ran.clear()

    def has_run(self, module: nn.Module) -> bool:
        """Tell whether one of the model's own modules has run since :meth:`forget_own`."""
        return id(module) in self._own_ran

    def _enter(self, module: nn.Module, arguments: object) -> None:
        if threading.get_ident() != self._thread:
            return
        if id(module) in self._own:
            self._inside += 1
            self._own_ran.add(id(module))
        elif self._inside and id(module) not in self._ran and _is_norm(module):
            self._ran[id(module)] = module
            self._buffers += [(each, each.clone()) for each in module.buffers() if not each.is_meta]

    def _leave(self, module: nn.Module, arguments: object, output: object) -> None:
        if threading.get_ident() == self._thread and id(module) in self._own:
            self._inside -= 1


def held_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norms that modules hold in plain attributes but not as submodules, by path.

    Searches lists, tuples, sets, dictionaries, partial functions, hooks, closures, default arguments and globals of
    functions, and attributes of other objects, three levels deep. Skips containers of more than 10,000 items, and
    Lightning's trainer.
    """
    own = {id(module) for module in model.modules()}
    seen = {id(vars(module)) for module in model.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it keeps the module that it was made from
            continue
        for key, value in _held_by(module):
            for path, held in _modules_in(value, f"{name}.{key}" if name else key, _DEPTH, seen):
                if id(held) in own or any(each is model for each in held.modules()):
                    continue
                for inner, each in held.named_modules():
                    if id(each) not in own and _is_norm(each):
                        own.add(id(each))
                        found[f"{path}.{inner}" if inner else path] = each
    return found


def _held_by(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield a module's own attributes, its hooks, and the globals that its forward reads."""
    yield from ((key, value) for key, value in vars(module).items() if key not in _TORCHS)
    for key in ("_forward_hooks", "_forward_pre_hooks"):
        yield from ((key, hook) for hook in vars(module).get(key, {}).values())
    forward = getattr(type(module), "forward", None)
    if isinstance(forward, FunctionType):
        named = ((name, forward.__globals__.get(name)) for name in _globals_of(forward.__code__))
        yield from ((name, value) for name, value in named if isinstance(value, nn.Module | list | tuple | dict))


@lru_cache(maxsize=1024)
def _globals_of(code: CodeType) -> tuple[str, ...]:
    """Name the globals that a function reads; ``co_names`` has attributes too."""
    found = (each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL")
    return tuple(dict.fromkeys(found))


def _modules_in(value: object, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield path, value
        return
    if depth == 0 or isinstance(value, _PLAIN) or id(value) in seen or _is_of_trainer(value):
        return
    if isinstance(value, Mapping | list | tuple | set | frozenset | deque) and len(value) > _LONGEST:
        return
    seen.add(id(value))
    for name, each in _parts_of(value):
        yield from _modules_in(each, f"{path}{name}", depth - 1, seen)


def _is_of_trainer(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in _TRAINERS


def _parts_of(value: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401 (anything that an attribute may be)
    """Yield the content of a container, a function or an object, each item with its suffix of the path."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"[{at}]", each) for at, each in enumerate(value))
    elif isinstance(value, partial):
        yield from ((f"({at})", each) for at, each in enumerate((value.func, *value.args, *value.keywords.values())))
    elif isinstance(value, MethodType):
        yield "", value.__self__
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:  # the variable has no value yet
                continue
        yield from ((f"({at})", each) for at, each in enumerate(value.__defaults__ or ()))
        yield from ((f".{name}", each) for name, each in (value.__kwdefaults__ or {}).items())
    else:
        yield from ((f".{key}", each) for key, each in _attributes_of(value).items())


def _attributes_of(value: object) -> dict[str, object]:
    """Return the attributes in an object's own ``__dict__``; for a proxy, not those of its target."""
    try:
        return dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:  # it has slots, or is an extension type
        return {}


def _is_norm(module: nn.Module) -> bool:
    return is_batch_norm(module) or why_unknown(module) is not None
