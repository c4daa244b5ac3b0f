"""Find the batch norms of a model, with their qualified names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.surgery.adapters.norm_then import NormThen
from steadynorm.surgery.change import Transaction
from steadynorm.surgery.kinds import is_batch_norm, label, why_unknown

__all__ = ["NamedModule", "Where", "batch_norms_of", "check_plain", "named_modules_of"]

Where = Callable[[str, nn.Module], bool]
"""(qualified name, module) -> whether to include the module; of a shared module one matching name is enough."""
_WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FSDPModule",
    "FullyShardedDataParallel",
    "OptimizedModule",
}
"""Names of classes, since importing them takes seconds. Base classes count: fully_shard adds one to a module."""


@dataclass(frozen=True, kw_only=True)
class NamedModule:
    """A module and all the qualified names it has; a module that two parents share has two.

    Args:
        names: a norm within :class:`NormAddActivation` or :class:`NormThen` has that module's name, as in state keys.
        module: the module itself.
        holder: the :class:`NormAddActivation` or :class:`NormThen` around it; None where there is none.
    """

    names: tuple[str, ...]
    module: nn.Module
    holder: NormAddActivation | NormThen | None = None

    @property
    def name(self) -> str:
        """The first of its names; empty for the root."""
        return self.names[0]


def named_modules_of(model: nn.Module) -> Iterator[NamedModule]:
    """Yield every module once, in the order of registration, with all its names."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    holders: dict[int, NormAddActivation | NormThen] = {}
    held: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, NormAddActivation | NormThen):
            held[f"{name}.norm" if name else "norm"] = name
            holders[id(module.norm)] = module
        names.setdefault(id(module), []).append(held.get(name, name))
        modules[id(module)] = module
    for key, module in modules.items():
        yield NamedModule(names=tuple(names[key]), module=module, holder=holders.get(key))


def batch_norms_of(model: nn.Module, where: Where | None = None, edits: Transaction | None = None) -> list[NamedModule]:
    """Return the model's batch norms, each once; modules that only look like one are refused in the transaction.

    Args:
        model: the root.
        where: (name, module) -> whether to include it; for a shared module one matching name is enough. None takes all.
        edits: where to record refusals; None records none.
    """
    chosen = [
        named
        for named in named_modules_of(model)
        if where is None or any(where(name, named.module) for name in named.names)
    ]
    if edits is not None:
        edits.where = where
    for named in chosen:
        why = why_unknown(named.module)
        if why is not None and edits is not None:
            edits.consider([named.name])
            edits.refuse(named.name, label(named.module), why)
    found = [named for named in chosen if is_batch_norm(named.module)]
    if edits is not None:
        edits.consider(named.name for named in found)
        if where is not None and not found:
            edits.pass_over(named.name for named in named_modules_of(model) if is_batch_norm(named.module))
    return found


def check_plain(verb: str, model: nn.Module) -> None:
    """Raise TypeError for a model whose modules can no longer be replaced.

    A script within the model is allowed: its content is kept, and batch norms in it are refused by name.

    Args:
        verb: name of the operation that replaces modules.
        model: the root.
    """
    for named in named_modules_of(model):
        kind = type(named.module).__name__
        bases = {cls.__name__ for cls in type(named.module).__mro__}
        wrapped = bases & _WRAPPERS or (named.module is model and isinstance(model, torch.jit.ScriptModule))
        if wrapped:
            raise TypeError(
                f"{verb}: modules must be exchanged before the model is wrapped or compiled, got {kind}"
                f"{f' at {named.name!r}' if named.name else ''}. Change the plain model, then wrap it."
            )
