"""The data flow of a model: which module reads which module's output, recorded in one run of an example.

Hooks record the calls of modules; below them a dispatch mode sees every ATen operation, from modules and plain
functions alike. Neither the order of registration nor a symbolic trace shows as much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from steadynorm.surgery.batches import Batch, Forward
from steadynorm.surgery.flow.trial import run, tensors_in
from steadynorm.surgery.kinds import is_batch_norm
from steadynorm.surgery.named_modules import named_modules_of

__all__ = ["LAYERS", "Call", "Flow", "Use", "Value", "storage_of", "trace"]

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Layers that are linear in their input, channel by channel of their output."""
_SHAPE_ONLY = {
    getattr(torch.ops.aten, name)
    for name in ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
}
"""Operations that read a tensor's shape, dtype and device, but not its values."""
_ARRANGING = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)
_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass(eq=False, kw_only=True)
class Call:
    """One call of a module; arguments and output are kept for layers and batch norms only."""

    name: str
    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None

    @property
    def input(self) -> Tensor | None:
        """The first argument."""
        first = self.args[0] if self.args else self.kwargs.get("input")
        return first if isinstance(first, Tensor) else None

    @property
    def extras(self) -> dict[str, Any]:
        """The arguments after the first, by name or by place."""
        named = {name: value for name, value in self.kwargs.items() if name != "input"}
        return {f"argument {place}": value for place, value in enumerate(self.args[1:], 2)} | named


@dataclass(frozen=True, kw_only=True)
class Use:
    """One read or overwrite of a value: its description, and the calls that it happens in, outermost first."""

    what: str
    calls: tuple[Call, ...] = ()

    def __str__(self) -> str:
        inside = self.calls[-1].name if self.calls else ""
        return f"{self.what} in {inside!r}" if inside else self.what


@dataclass(eq=False, kw_only=True)
class Value:
    """A tensor whose readers are watched.

    Views count as the value itself, and so do copies that only change its layout, such as those of ``contiguous``.

    Args:
        tensor: kept, so that no other tensor gets its storage later.
        call: the call that returned it; None for a parameter or buffer.
        copies: pairs (source, copy), in the order in which the copies were made.
        uses: what reads it, views and copies aside.
    """

    tensor: Tensor
    call: Call | None = None
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)

    def used_outside(self, call: Call) -> list[Use]:
        """Return the uses that are not part of a call."""
        return [use for use in self.uses if call not in use.calls]


class Flow:
    """The calls and values recorded in a run of a model.

    Args:
        model: the model that is going to run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.output: Any = None
        self._calls: dict[int, list[Call]] = {}
        self._values: dict[int, Value] = {}
        self._owners: dict[int, list[str]] = {}
        for named in named_modules_of(model):
            for name, tensor in [*named.module._parameters.items(), *named.module._buffers.items()]:
                key = storage_of(tensor)
                if key is not None and tensor is not None:
                    self._values.setdefault(key, Value(tensor=tensor))
                    self._owners.setdefault(key, []).append(f"{named.name}.{name}" if named.name else name)

    def calls_of(self, module: nn.Module) -> list[Call]:
        """Return the calls of a layer or batch norm, in order."""
        return self._calls.get(id(module), [])

    def value_of(self, tensor: Tensor | None) -> Value | None:
        """Return the watched value behind a tensor, which may be a view or copy of it."""
        return self._values.get(storage_of(tensor) or 0)

    def owners_of(self, parameter: Tensor) -> list[str]:
        """Name the parameters and buffers that lie in the same memory, this one included."""
        return self._owners.get(storage_of(parameter) or 0, [])

    def dtypes(self) -> set[torch.dtype]:
        """Return the dtypes in which layers and batch norms computed."""
        return {value.tensor.dtype for value in self._values.values() if value.call is not None}

    def watch(self, call: Call) -> None:
        """Record a call, and watch its output from now on."""
        self._calls.setdefault(id(call.module), []).append(call)
        key = storage_of(call.output)
        if key is not None:
            self._values.setdefault(key, Value(tensor=call.output, call=call))

    def note_copy(self, source: Tensor, copy: Tensor) -> bool:
        """Treat a copy of a watched value as the value itself; False if the source or the copy rules that out."""
        value, key = self.value_of(source), storage_of(copy)
        if value is None or key is None:
            return False
        if (copy.dtype, copy.device) != (value.tensor.dtype, value.tensor.device):
            return False
        value.copies.append((source, copy))
        self._values[key] = value
        return True

    def note_use(self, what: str, tensors: object, calls: tuple[Call, ...] = ()) -> None:
        """Record a use of those tensors that are watched."""
        for value in {id(each): each for _, t in tensors_in(tensors) if (each := self.value_of(t))}.values():
            value.uses.append(Use(what=what, calls=calls))


def trace(model: nn.Module, example: Batch, forward: Forward | None = None) -> Flow:
    """Run a model on an example as :func:`steadynorm.surgery.flow.trial.run` does, and watch.

    Watches the outputs of layers and batch norms, and all parameters and buffers. It misses code that reads memory
    without an ATen operation (``numpy``, a custom kernel) or keeps a tensor outside the model to read it later.
    """
    flow = Flow(model)
    recorder = _Recorder(flow)
    handles: list[RemovableHandle] = []
    try:
        handles.append(register_module_forward_pre_hook(recorder.see_script))
        for named in named_modules_of(model):
            if isinstance(named.module, torch.jit.ScriptModule):  # takes no hooks of its own
                continue
            hooked = _has_hooks(named.module)
            enter = partial(recorder.enter, named.name, hooked)
            handles.append(named.module.register_forward_pre_hook(enter, with_kwargs=True))
            leave = partial(recorder.leave, hooked)
            handles.append(named.module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        flow.output = run(model, example, forward, within=recorder)
    finally:
        for handle in handles:
            handle.remove()
    for path, tensor in tensors_in(flow.output):
        flow.note_use(path, tensor)
    for named in named_modules_of(model):
        for name, kept in vars(named.module).items():
            if name not in _TABLES and isinstance(kept, Tensor | list | tuple | dict):
                flow.note_use(f"the attribute {name!r} of {named.name!r}", kept)
    return flow


def storage_of(tensor: object) -> int | None:
    """Identify the memory of a tensor while it is alive; None if it has no memory of its own."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return None
    return int(tensor.untyped_storage()._cdata)


class _Recorder(TorchDispatchMode):
    """Tracks the calls that are under way, and records what operations read in them."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flow = flow
        self._under_way: list[Call] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (as torch calls it)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation, and record what it reads."""
        output = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.overloadpacket in _SHAPE_ONLY:
            return output
        arranged = func in _ARRANGING and self._flow.note_copy(given[0], output)
        if not arranged and not _is_view(func, given, output):
            self._flow.note_use(str(func.overloadpacket), given, tuple(self._under_way))
        return output

    def enter(self, name: str, hooked: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call."""
        watched = isinstance(module, LAYERS) or is_batch_norm(module)
        kept: dict[str, Any] = {"args": args, "kwargs": kwargs} if watched else {}
        self._under_way.append(Call(name=name, module=module, **kept))
        if hooked:
            self._flow.note_use(f"a hook on {name!r}", (args, kwargs))

    def see_script(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Record a script's arguments: it may fuse operations, which hides them."""
        if isinstance(module, torch.jit.ScriptModule):
            self._flow.note_use("a script", args, tuple(self._under_way))

    def leave(
        self,
        hooked: bool,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,  # noqa: ANN401 (as the module has it)
    ) -> None:
        """End a call."""
        call = self._under_way.pop()
        if isinstance(module, LAYERS) or is_batch_norm(module):
            call.output = output
            self._flow.watch(call)
        if hooked:
            self._flow.note_use(f"a hook on {call.name!r}", output)


def _is_view(func: Any, given: list[Tensor], output: object) -> bool:  # noqa: ANN401 (an operation of torch's)
    """Whether an operation writes nothing and returns only views of its inputs."""
    memory = {storage_of(tensor) for tensor in given} - {None}
    made = [storage_of(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return bool(made) and not func._schema.is_mutable and all(each in memory for each in made)


def _has_hooks(module: nn.Module) -> bool:
    """Whether hooks see or change what goes into a module or comes out of it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)
