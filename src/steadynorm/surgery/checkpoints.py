"""Match a loaded checkpoint, in any common form, to the names of a model's state dict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["NamedState", "named_behind", "state_for", "why_no_numbers"]

_COUNTER = "num_batches_tracked"
_STATISTICS = frozenset({"running_mean", "running_var"})
_TRANSPARENT = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DistributedDataParallel, torch.compile, FSDP and activation checkpointing add to a name, anywhere in it."""
_HOLDERS = frozenset(
    {
        *("state_dict", "model_state_dict", "model_state", "state", "checkpoint", "weights", "params"),
        *("model", "_model", "net", "network"),
        *("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "shadow", "averaged_model"),
    }
)
"""Keys of a checkpoint, or attributes of a wrapper, under which a model's state is usually kept."""
_DEPTH = 4
_LISTED = 3
_OF_OPTIMIZER = re.compile(r"(^|\.)state\.\d+\.")
"""Pattern in the names of an optimizer's state for a parameter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedState:
    """The tensors of a checkpoint by the model's names.

    Args:
        tensors: the model's name -> tensor, with the checkpoint's shape and dtype; a counter of batches of shape (1,)
            becomes shape (), an empty one is left out.
        missing: names of the model that the checkpoint does not have; counters of batches are not needed.
        unknown: other names in the same part of the checkpoint that the model does not have, without their prefix.
        notes: how the names were changed, and which parts were skipped; empty for the model's own state dict.
    """

    tensors: dict[str, Tensor]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def state_for(
    model: nn.Module,
    loaded: Mapping[str, Any] | nn.Module,
    *,
    verb: str,
    wanted: Mapping[str, Tensor] | None = None,
) -> NamedState:
    """Find a model's state in a loaded checkpoint and give it by the model's own names.

    Accepts a state dict or a module, also within mappings (``{"state_dict": ...}``, ``{"model": ...}``); prefixes of
    wrappers (``module.``, ``_orig_mod.``, ``model.``, ``ema_model.``, any combination), also within names
    (``_orig_mod``); plain names for a wrapped model; any other prefix, such as an attribute of a LightningModule, if
    it has every wanted name in the right shape; NumPy arrays; running statistics as lists of numbers, as in JSON. If
    plain and prefixed names fit equally well, plain ones are taken.

    Args:
        model: the model whose names are used.
        loaded: the result of ``torch.load`` or ``safetensors``. Not modified.
        verb: name of the operation, for messages.
        wanted: the model's tensors to find, by name; None is its whole state dict.

    Returns:
        the state. Neither shapes and dtypes are checked, nor that a tensor has values (:func:`why_no_numbers`).

    Raises:
        TypeError: ``loaded`` is neither a mapping nor a module.
        ValueError: it has none of the wanted names, or two parts of it fit equally well and differ.

    >>> state = state_for(nn.Linear(2, 3), {"state_dict": {"module.weight": torch.zeros(3, 2)}}, verb="load")
    >>> list(state.tensors), state.missing, state.notes
    (['weight'], ('bias',), ("names are taken without 'state_dict.module.'",))
    """
    if not isinstance(loaded, Mapping | nn.Module):
        raise TypeError(
            f"{verb}: a checkpoint must be a mapping of names to tensors, got {type(loaded).__name__}. Load it with "
            "torch.load or safetensors first."
        )
    wanted = model.state_dict() if wanted is None else wanted
    wanted = {name: each for name, each in wanted.items() if isinstance(each, Tensor)}  # it may hold other objects
    found, nameless = dict(_tensors(loaded, "", _DEPTH)), list(_nameless(loaded, "", _DEPTH))
    plain = _without_wrappers(found)
    names, prefix = _fit(verb, {short: found[key] for key, short in plain.items()}, wanted, nameless)
    keys = {names[rest]: key for key, short in plain.items() if (rest := _behind(prefix, short)) in names}
    kept = {name: keys[name] for name in wanted if name in keys}
    tensors = {name: found[key] for name, key in kept.items()}
    tensors = {name: _counter(each) if _is_counter(name) else each for name, each in tensors.items()}
    before = tuple(dict.fromkeys(key.removesuffix(name) for name, key in kept.items() if key.endswith(name)))
    others = {key: _behind(prefix, short) for key, short in plain.items() if key.startswith(before or "")}
    return NamedState(
        tensors={name: each for name, each in tensors.items() if each.numel() or not _is_counter(name)},
        missing=tuple(name for name in wanted if name not in kept and not _is_counter(name)),
        unknown=tuple(rest for rest in others.values() if rest is not None and rest not in names),
        notes=tuple(_notes(kept, before, [*(key for key in found if others.get(key) is None), *nameless])),
    )


def named_behind(loaded: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a key and a dot, without that prefix; wrappers are ignored.

    >>> named_behind({"state_dict": {"ema.module.weight": torch.ones(1)}}, "state_dict.ema")
    {'weight': tensor([1.])}
    """
    found = dict(_tensors(loaded, "", _DEPTH))
    rest = {name: _behind(f"{key}.", short) for name, short in _without_wrappers(found).items()}
    return {short: found[name] for name, short in rest.items() if short}


def why_no_numbers(tensor: Tensor) -> str | None:
    """Say why a tensor of a checkpoint cannot be copied; None if it can."""
    if tensor.is_meta:
        return "is on the meta device, which holds no numbers"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is {'nested' if tensor.is_nested else tensor.layout}, not dense"
    return None


def _tensors(value: object, path: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings by their path, with a dot between keys."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Mapping):
        for key, each in value.items() if depth else ():
            yield from _tensors(each, f"{path}.{key}" if path else str(key), depth - 1)
    elif isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "biuf":
            yield path, torch.tensor(value)
    elif isinstance(value, int) and _is_counter(path):
        yield path, torch.tensor(value)
    elif path.rpartition(".")[2] in _STATISTICS and _is_numbers(value):
        yield path, torch.tensor(value, dtype=torch.float64)


def _nameless(value: object, path: str, depth: int) -> Iterator[str]:
    """Name the lists of tensors in nested mappings, a form in which some tools store averaged weights."""
    if isinstance(value, Mapping):
        for key, each in value.items() if depth else ():
            yield from _nameless(each, f"{path}.{key}" if path else str(key), depth - 1)
    elif isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
        yield f"{path} ({len(value)} tensors without names)"


def _is_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, float | int) for each in value)


def _without_wrappers(names: Mapping[str, Any]) -> dict[str, str]:
    """Strip from each name what wrappers add; leave all names as they are if two would become the same."""
    short = {name: ".".join(part for part in name.split(".") if part not in _TRANSPARENT) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _behind(prefix: str, name: str) -> str | None:
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _fit(
    verb: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], nameless: list[str]
) -> tuple[dict[str, str], str]:
    """Find the names to look for (name -> the model's own) and their prefix in the checkpoint."""
    names = {short: name for name, short in _without_wrappers(wanted).items()}
    for each in (names, _without_holders(names)):
        counts = Counter(prefix for key in found for prefix in _prefixes(key, each))
        fit = {p: n for p, n in counts.items() if _is_usual(p) or _is_complete(p, found, each, wanted)}
        if fit:
            return each, _best(verb, fit, found, each)
    raise ValueError(
        f"{verb}: the checkpoint must have tensors by the model's names, {_some(wanted)}, got {_got(found, nameless)}"
    )


def _got(found: Mapping[str, Tensor], nameless: list[str]) -> str:
    """Describe what was found instead of a model's state, and say what to do."""
    if nameless:
        return (
            f"{_some(nameless)}. Copy them into the model's parameters with the tool that wrote them, and save its "
            "state dict."
        )
    if found and all(_OF_OPTIMIZER.search(name) for name in found):
        return f"only an optimizer's state, {_some(found)}. Give the file with the weights."
    return f"{_some(found)}. Rename its keys, or build the model that it was saved from."


def _without_holders(names: dict[str, str]) -> dict[str, str]:
    """Strip the common prefix of the model's own names, if the model itself is a wrapper."""
    first = [set(parts) for parts in zip(*(name.split(".")[:-1] for name in names), strict=False)]
    own = list(takewhile(lambda parts: len(parts) == 1 and parts <= _HOLDERS, first))
    return {".".join(name.split(".")[len(own) :]): full for name, full in names.items()}


def _best(verb: str, fit: Mapping[str, int], found: Mapping[str, Tensor], names: Mapping[str, str]) -> str:
    """Choose the prefix with the most matching names."""
    most = max(fit.values())
    best = [each for each, n in fit.items() if n == most]
    if "" in best or len(best) == 1:
        return "" if "" in best else best[0]
    first, *others = best
    if not all(_is_same(found, first, other, names) for other in others):
        raise ValueError(
            f"{verb}: one part of the checkpoint must fit the model, got several that differ: "
            f"{', '.join(each.rstrip('.') for each in best)}. Choose one of them."
        )
    return first


def _prefixes(key: str, names: Mapping[str, str]) -> Iterator[str]:
    """Yield each prefix of a key that leaves one of the names."""
    parts = key.split(".")
    for at in range(len(parts)):
        if ".".join(parts[at:]) in names:
            yield "".join(f"{part}." for part in parts[:at])


def _is_usual(prefix: str) -> bool:
    return all(part in _HOLDERS | _TRANSPARENT for part in prefix.split(".")[:-1])


def _is_complete(
    prefix: str, found: Mapping[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, Tensor]
) -> bool:
    """Tell whether a prefix has all wanted tensors except counters, in their shapes."""
    needed = {short: wanted[name] for short, name in names.items() if not _is_counter(name)}
    there = {short: found.get(prefix + short) for short in needed}
    return bool(needed) and all(
        each is not None and not is_lazy(needed[short]) and not each.is_nested and each.shape == needed[short].shape
        for short, each in there.items()
    )


def _is_same(found: Mapping[str, Tensor], first: str, other: str, names: Mapping[str, str]) -> bool:
    """Tell whether two parts of a checkpoint hold the same values."""
    for name in names:
        one, two = found.get(first + name), found.get(other + name)
        if one is not two and (one is None or two is None or not _is_equal(one, two)):
            return False
    return True


def _is_equal(one: Tensor, two: Tensor) -> bool:
    """Tell whether two tensors hold the same values; two tensors without values do."""
    without = [why_no_numbers(each) is not None for each in (one, two)]
    return all(without) or (not any(without) and torch.equal(one.cpu(), two.cpu()))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _counter(tensor: Tensor) -> Tensor:
    """Reshape a counter of batches to torch's shape; some tools store it as (1,)."""
    return tensor.reshape(()) if tensor.numel() == 1 else tensor


def _notes(kept: Mapping[str, str], before: tuple[str, ...], outside: list[str]) -> Iterator[str]:
    """Say how the checkpoint's names differ from the model's."""
    for prefix in filter(None, before):
        yield f"names are taken without {prefix!r}"
    other = [(key, name) for name, key in kept.items() if not key.endswith(name)]
    if other:
        yield f"{len(other)} names of wrapped modules are understood, as {other[0][0]!r} for {other[0][1]!r}"
    if outside:
        yield f"passed over beside them: {_some(_grouped(outside, kept.values()))}"


def _grouped(names: list[str], taken: Iterable[str]) -> list[str]:
    """Group names with the same first part, such as an optimizer's, unless a matched name begins so too."""
    begun = {name.partition(".")[0] for name in taken}
    counts = Counter(name.partition(".")[0] for name in names)
    alike = {first: f"{first}.* ({n} tensors)" for first, n in counts.items() if n > 1 and first not in begun}
    return list(dict.fromkeys(alike.get(name.partition(".")[0], name) for name in names))


def _some(names: Mapping[str, Any] | list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(list(names)[:_LISTED]) + (f", ... ({len(names)} in all)" if len(names) > _LISTED else "")
