"""Contexts in which forwards do not update the running statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from steadynorm.layers.state import on_copies
from steadynorm.surgery.kinds import is_batch_norm, label, why_unknown
from steadynorm.surgery.named_modules import NamedModule, Where, named_modules_of

__all__ = [
    "StandIn",
    "input_of",
    "is_on_copies",
    "name_of_input",
    "no_statistics_update",
    "outside_graphs",
    "replaced_forwards",
    "use_batch_statistics",
    "use_running_statistics",
]


@contextmanager
def no_statistics_update(model: nn.Module, *, where: Where | None = None) -> Iterator[None]:
    """Context in which no forward updates the running statistics; outputs and gradients do not change.

    For a teacher, a probe, or a second forward with other weights or inputs (SAM, adversarial attacks). A layer in
    training mode normalizes by batch statistics, with gradient, and counts no batch; windows, banks and noise of our
    layers stay unchanged too. Autograd saves copies of the running statistics, so several forwards can precede one
    backward.

    This and the two other contexts apply to the batch norms that ``where`` selects and leave ``.training`` as it is.
    They can be nested; the innermost one that chooses the statistics decides. With ``torch.utils.checkpoint``, run the
    backward inside the context too, because it repeats the forward. Compiled models break their graph at these layers,
    so ``fullgraph=True`` raises. A copy of the model made inside (deepcopy, pickle, AveragedModel, torch.save) is not
    in the context. DistributedDataParallel still broadcasts the buffers of rank 0 before a forward.

    Args:
        model: the root module.
        where: (qualified name, module) -> whether to include the layer; None takes all.

    Raises:
        TypeError: a subclass of batch norm, or a compiled script, whose updates are unknown.

    >>> norm = nn.BatchNorm1d(3)
    >>> with no_statistics_update(norm):
    ...     _ = norm(torch.randn(8, 3))
    >>> int(norm.num_batches_tracked)
    0
    """
    with _forwards_on_copies(_chosen("no_statistics_update", model, where), training=None):
        yield


@contextmanager
def use_batch_statistics(model: nn.Module, *, where: Where | None = None) -> Iterator[None]:
    """Context in which batch norms normalize by batch statistics, and update no running statistics.

    Gradients flow through the batch statistics. Each kind behaves as in training: batch renorm corrects towards its
    running statistics, gated batch norm blends with them, a synchronized layer communicates with the other ranks.
    FrozenBatchNorm stays frozen. Otherwise as :func:`no_statistics_update`.

    Args:
        model: the root module.
        where: (qualified name, module) -> whether to include the layer; None takes all.

    Raises:
        TypeError: as :func:`no_statistics_update`.
    """
    with _forwards_on_copies(_chosen("use_batch_statistics", model, where), training=True):
        yield


@contextmanager
def use_running_statistics(model: nn.Module, *, where: Where | None = None) -> Iterator[None]:
    """Context in which batch norms normalize by their running statistics, as in evaluation, and do not update them.

    Dropout and other modules keep their mode. Otherwise as :func:`no_statistics_update`.

    Args:
        model: the root module.
        where: (qualified name, module) -> whether to include the layer; None takes all.

    Raises:
        TypeError: as :func:`no_statistics_update`.
        ValueError: a layer has no running statistics.
    """
    norms = _chosen("use_running_statistics", model, where)
    without = [_described(named) for named in norms if named.module.running_mean is None]
    if without:
        raise ValueError(
            f"use_running_statistics: every layer must have running statistics, got {', '.join(without)} without. "
            "Leave them out with where=...."
        )
    with _forwards_on_copies(norms, training=False):
        yield


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Replace the forwards of some modules, on these instances only.

    A copy made inside (deepcopy, pickle, torch.save) has the module's original forward.

    Args:
        forwards: module -> function to call instead. The original forwards are restored on exit.
    """
    before = {module: {name: vars(module).get(name) for name in ("forward", "__getstate__")} for module in forwards}
    try:
        for module, forward in forwards.items():
            outside = before[module]["__getstate__"]
            vars(module)["__getstate__"] = outside if isinstance(outside, _StateOutside) else _StateOutside(module)
            vars(module)["forward"] = forward
        yield
    finally:
        for module, entries in before.items():
            for name, entry in entries.items():
                if entry is None:
                    vars(module).pop(name, None)
                else:
                    vars(module)[name] = entry


def input_of(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:  # noqa: ANN401 (as the caller gives it)
    """Return a layer's input, passed by position or by name; None if it is called without arguments."""
    return arguments[0] if arguments else named.get(name_of_input(named))


def name_of_input(named: Mapping[str, Any]) -> str:
    """Return the name of the input if a layer is called with keyword arguments only: torch's, else the first."""
    return "input" if "input" in named else next(iter(named), "input")


def outside_graphs(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as it takes them)
    """Call a function; a compiler breaks its graph there."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return function(*arguments, **named)
    return torch.compiler.disable(function)(*arguments, **named)  # type: ignore[no-untyped-call, unused-ignore]


class StandIn:
    """Base class of replaced forwards that these contexts accept; inside a context the replacement does not run."""


def is_on_copies(module: nn.Module) -> bool:
    """Whether a module is in one of these contexts, so that its forward updates no running statistics."""
    return isinstance(vars(module).get("forward"), _ForwardOnCopies)


class _StateOutside:
    """Replaces a module's ``__getstate__``, which copying and pickling look up on the instance."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.replaced = {name: vars(module)[name] for name in ("forward", "__getstate__") if name in vars(module)}

    def __call__(self) -> dict[str, Any]:
        getstate = self.replaced.get("__getstate__") or type(self.module).__getstate__.__get__(self.module)
        state = {name: each for name, each in getstate().items() if name not in ("forward", "__getstate__")}
        return state | self.replaced


class _ForwardOnCopies(StandIn):
    """Replaces a batch norm's forward: runs it on copies of its buffers, in the requested mode."""

    def __init__(self, module: nn.Module, training: bool | None) -> None:
        outer = vars(module).get("forward")
        self.module = module
        self.training: bool | None = (
            outer.training if training is None and isinstance(outer, _ForwardOnCopies) else training
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
        return outside_graphs(self._run, *arguments, **named)

    def _run(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 (as the layer takes and gives them)
        with on_copies(self.module):
            if self.training is not None:
                self.module.training = self.training
            return type(self.module).forward(self.module, *arguments, **named)


@contextmanager
def _forwards_on_copies(norms: Iterable[NamedModule], *, training: bool | None) -> Iterator[None]:
    with replaced_forwards({named.module: _ForwardOnCopies(named.module, training) for named in norms}):
        yield


def _chosen(verb: str, model: nn.Module, where: Where | None) -> list[NamedModule]:
    """Return the selected batch norms, including those in another of these contexts."""
    found = []
    for named in named_modules_of(model):
        if where is not None and not any(where(name, named.module) for name in named.names):
            continue
        if isinstance(vars(named.module).get("forward"), StandIn) or is_batch_norm(named.module):
            found.append(named)
            continue
        why = why_unknown(named.module)
        if why is not None:
            raise TypeError(
                f"{verb}: every batch norm must be one of torch's or ours, got {_described(named)}: {why} Or leave it "
                "out with where=...."
            )
    return found


def _described(named: NamedModule) -> str:
    return f"{label(named.module)} {named.name or '(the model)'!r}"
