"""Read, write, copy and merge running statistics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.statistics.moments import mixture
from steadynorm.surgery.batches import unwrapped
from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.checkpoints import NamedState, state_for
from steadynorm.surgery.estimation.write_statistics import MEAN, VAR, summary, why_not_writable, write_statistics_
from steadynorm.surgery.hidden import held_norms
from steadynorm.surgery.kinds import Norm, label
from steadynorm.surgery.named_modules import NamedModule, Where, batch_norms_of
from steadynorm.surgery.runnable import why_not_readable

__all__ = [
    "COUNTER",
    "MEAN",
    "VAR",
    "copy_statistics_",
    "load_statistics_",
    "merge_statistics",
    "shares_of",
    "statistics_of",
    "write_found_",
]

COUNTER = "num_batches_tracked"


def statistics_of(model: nn.Module, *, where: Where | None = None) -> dict[str, Tensor]:
    """Return a snapshot of the running statistics of a model.

    Args:
        model: the root module.
        where: (qualified name, module) -> whether to include the layer; None takes all.

    Returns:
        copies on the CPU of each layer's running_mean, running_var and num_batches_tracked, by their state dict keys; a
            shared layer appears under each of its names. Layers without running statistics are left out.

    Raises:
        ValueError: a layer is on the meta device.

    Warns:
        UserWarning: an unknown subclass of batch norm, or one that is not a registered submodule, is left out.

    >>> sorted(statistics_of(nn.BatchNorm1d(3)))
    ['num_batches_tracked', 'running_mean', 'running_var']
    """
    edits = Transaction("statistics_of", model)
    norms = batch_norms_of(model, where, edits)
    for named in norms:
        why = why_not_readable(named.module)
        if why is not None and named.module.running_mean is not None:
            raise ValueError(f"statistics_of: statistics must hold numbers, got {named.name!r}: {why}")
    for path, module in held_norms(model).items():
        if where is None or where(path, module):
            edits.refuse(path, label(module), "it is not a registered submodule, so no state dict has them.")
    for each in edits.refused:
        warnings.warn(
            f"statistics_of: the statistics of {each.what} {each.name!r} are not taken: {each.why}", stacklevel=2
        )
    return {
        _key(name, key): tensor.detach().cpu().clone()
        for named in norms
        for name in named.names
        for key in (MEAN, VAR, COUNTER)
        if (tensor := getattr(named.module, key, None)) is not None
    }


def load_statistics_(
    model: nn.Module, statistics: Mapping[str, Any] | nn.Module, *, where: Where | None = None
) -> Change:
    """Load running statistics from a snapshot, a state dict or a checkpoint, in place.

    Names with wrapper prefixes (``module.``, ``_orig_mod.``, ``model.``) and nested mappings are matched, and a note
    says how. A layer takes mean and variance together, or is refused: if a key is missing, has another shape, is not a
    floating-point tensor or not finite, if a variance is negative, or if the names of a shared layer disagree. A
    missing or invalid counter leaves ``num_batches_tracked`` unchanged. Windows and banks of our layers restart.
    Statistics of layers that the model does not have are refused; other keys are named in one line.

    Args:
        model: the root module.
        statistics: from :func:`statistics_of` or ``torch.load``, or a module; tensors or NumPy arrays, of any floating
            dtype and device.
        where: (qualified name, module) -> whether to load it; None takes all. Keys of other layers are ignored.

    Returns:
        the Change.

    Raises:
        ValueError: no layer takes any; several parts of a checkpoint fit equally well and differ.
        TypeError: ``statistics`` is not a mapping or a module.
    """
    with Transaction("load_statistics_", model) as edits:
        _load(edits, model, statistics, where)
        return edits.finish()


def copy_statistics_(source: nn.Module, target: nn.Module, *, where: Where | None = None) -> Change:
    """Copy the running statistics of one model to another, by name.

    For example from a teacher, an average of weights or a target network. Layers are matched as by
    :func:`load_statistics_`; DistributedDataParallel, AveragedModel and torch.compile around either model do not change
    its names.

    Args:
        source: not modified.
        target: the model to write to.
        where: (qualified name, module) in the target -> whether to write it; None takes all.

    Returns:
        the Change of ``target``.

    Raises:
        ValueError: no layer of the target takes any.
    """
    statistics = statistics_of(unwrapped(source))
    with Transaction("copy_statistics_", target) as edits:
        _load(edits, unwrapped(target), statistics, where)
        return edits.finish()


def merge_statistics(
    statistics: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    r"""Merge the running statistics of several models, as if one model had seen all their data.

    $$
    \mathrm{mean} = \sum_i w_i\,\mathrm{mean}_i \qquad \mathrm{var} = \sum_i w_i\,\left(\mathrm{var}_i +
    (\mathrm{mean}_i - \mathrm{mean})^2\right)
    $$

    Averaging the variances alone, as federated averaging and most tools do, ignores the differences between the means.
    Computed in float64; identical values stay identical bit for bit. The counter is the largest.

    Args:
        statistics: at least one, from :func:`statistics_of`, all with the same keys; tensors, NumPy arrays or lists.
        weights: one per model, at least 0, for example numbers of samples; None weights all equally.

    Returns:
        merged statistics, in the dtype and on the device of the first.

    Raises:
        ValueError: keys or shapes differ; a mean without a variance; values that are not finite; invalid weights.

    Source: law of total variance.

    >>> one, other = ({"running_mean": torch.tensor([m]), "running_var": torch.ones(1)} for m in (0.0, 2.0))
    >>> merge_statistics([one, other])
    {'running_mean': tensor([1.]), 'running_var': tensor([2.])}
    """
    if not statistics:
        raise ValueError("merge_statistics: there must be statistics of at least one model, got none.")
    statistics = [{key: torch.as_tensor(each) for key, each in one.items()} for one in statistics]
    shares = _shares(weights, len(statistics))
    _check_alike(statistics)
    result: dict[str, Tensor] = {}
    for key, first in statistics[0].items():
        name, kind = _split(key)
        each = torch.stack([one[key].to(first.device).flatten() for one in statistics])
        if kind == COUNTER:
            new = each.max(0).values
        else:
            means, variances = (
                torch.stack([one[_key(name, what)].to(first.device) for one in statistics]) for what in (MEAN, VAR)
            )
            mean, var = mixture(means.double(), variances.double(), shares.to(first.device).unsqueeze(1))
            new = mean if kind == MEAN else var
        result[key] = new.view(first.shape).to(first.dtype)
    return result


def _load(edits: Transaction, model: nn.Module, loaded: Mapping[str, Any] | nn.Module, where: Where | None) -> None:
    wanted = {
        _key(name, kind): tensor
        for named in batch_norms_of(model)
        for name in named.names
        for kind in (MEAN, VAR, COUNTER)
        if (tensor := getattr(named.module, kind, None)) is not None
    }
    state = state_for(model, loaded, verb=edits.verb, wanted=wanted)
    edits.notes.extend(state.notes)
    write_found_(edits, model, state, where)


def write_found_(edits: Transaction, model: nn.Module, state: NamedState, where: Where | None = None) -> None:
    """Write the running statistics that were found for a model, see :func:`load_statistics_`.

    Raises:
        ValueError: no layer takes any, and nothing else was changed.
    """
    for named in batch_norms_of(model, where, edits):
        why = _why_not(named, state)
        if why is not None:
            edits.refuse(named.name, label(named.module), why)
        elif named.module.running_mean is not None:
            _write(edits, named, state)
    _refuse_unexpected(edits, model, state)
    if not edits.changed:
        reasons = "; ".join(map(str, edits.refused)) or "no batch norm is chosen"
        raise ValueError(f"{edits.verb}: at least one layer must take statistics, got none: {reasons}")


def _why_not(named: NamedModule, state: NamedState) -> str | None:
    """Say why statistics cannot be written into a layer; None if they can, or if it has none and gets none."""
    module: Norm = named.module
    if module.running_mean is None or module.running_var is None:
        given = [key for name in named.names for kind in (MEAN, VAR) if (key := _key(name, kind)) in state.unknown]
        return f"it has no running statistics, but {given[0]} is given." if given else None
    missing = [key for kind in (MEAN, VAR) if (key := _key(_source(named, state), kind)) not in state.tensors]
    if missing:
        return f"{' and '.join(missing)} missing."
    for kind in (MEAN, VAR):
        first, *others = [state.tensors[key] for name in named.names if (key := _key(name, kind)) in state.tensors]
        if not all(torch.equal(first.cpu(), other.cpu()) for other in others):
            return f"it is one layer with the names {', '.join(named.names)}, for which {kind} differs."
    mean, var = (state.tensors[_key(_source(named, state), kind)] for kind in (MEAN, VAR))
    return why_not_writable(module, mean, var)


def _source(named: NamedModule, state: NamedState) -> str:
    """Return the name under which a layer's statistics are given."""
    return next((name for name in named.names if _key(name, MEAN) in state.tensors), named.name)


def _write(edits: Transaction, named: NamedModule, state: NamedState) -> None:
    module: Norm = named.module
    name = _source(named, state)
    before = summary(module.running_mean, module.running_var)
    counter, notes = _count(state.tensors.get(_key(name, COUNTER)))
    notes += write_statistics_(
        edits, module, state.tensors[_key(name, MEAN)], state.tensors[_key(name, VAR)], batches=counter
    )
    edits.note_changed(named.name, before, summary(module.running_mean, module.running_var), *notes)


def _count(counter: Tensor | None) -> tuple[int | None, list[str]]:
    """Return the value of a counter of batches, or None and a note if it is invalid."""
    if counter is None:
        return None, []
    if counter.numel() == 1 and not counter.is_meta and bool(counter.isfinite()) and counter.item() >= 0:
        return int(counter), []
    what = f"shape {tuple(counter.shape)}" if counter.numel() != 1 or counter.is_meta else f"{counter.item()}"
    return None, [f"its {COUNTER} stays: the given one must be one number of at least 0, got {what}"]


def _refuse_unexpected(edits: Transaction, model: nn.Module, state: NamedState) -> None:
    without = {
        _key(name, kind) for named in batch_norms_of(model) for name in named.names for kind in (MEAN, VAR, COUNTER)
    }
    refused = {each.name for each in edits.refused}
    others = []
    for key in state.unknown:
        name, kind = _split(key)
        if kind not in (MEAN, VAR, COUNTER):
            others.append(key)
        elif key not in without and name not in refused:
            edits.refuse(name, kind, "unexpected: the model has no such batch norm.")
    if others:
        first = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        edits.refuse("", f"{len(others)} other keys ({first})", "they are not running statistics.")


def _shares(weights: Sequence[float] | None, number: int) -> Tensor:
    weights = [1.0] * number if weights is None else list(weights)
    if len(weights) != number:
        raise ValueError(f"merge_statistics: there must be one weight per model, got {len(weights)} for {number}.")
    if not all(math.isfinite(each) and each >= 0 for each in weights) or sum(weights) <= 0:
        raise ValueError(
            f"merge_statistics: weights must be finite and at least 0, with a positive sum, got {weights}."
        )
    return shares_of(torch.tensor(weights, dtype=torch.float64))


def shares_of(weights: Tensor) -> Tensor:
    """Divide non-negative weights by their sum, which may be too large for their dtype."""
    scaled = weights / weights.max()
    return scaled / scaled.sum()


def _check_alike(statistics: Sequence[Mapping[str, Tensor]]) -> None:
    first = statistics[0]
    for at, other in enumerate(statistics):
        differing = sorted(first.keys() ^ other.keys())
        if differing:
            raise ValueError(
                f"merge_statistics: all must have the same keys, got {', '.join(differing)} in one of 0 and {at} only. "
                "Take them of the same layers, with statistics_of(model, where=...)."
            )
        for key, tensor in other.items():
            if tensor.shape != first[key].shape:
                found = f"{tuple(first[key].shape)} in 0 and {tuple(tensor.shape)} in {at}"
                raise ValueError(f"merge_statistics: shapes must be the same, got {key} of {found}.")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"merge_statistics: numbers must be finite, got others in {key} of {at}.")
            _check_kind(key, tensor, at)
    for key in first:
        _check_paired(first, key)


def _check_kind(key: str, tensor: Tensor, at: int) -> None:
    kind = _split(key)[1]
    if kind in (MEAN, VAR) and not tensor.is_floating_point():
        raise ValueError(f"merge_statistics: {kind} must be of a floating dtype, got {tensor.dtype} in {key} of {at}.")
    if kind == VAR and bool((tensor < 0).any()):
        raise ValueError(f"merge_statistics: variances must not be negative, got {tensor.min()} in {key} of {at}.")


def _check_paired(statistics: Mapping[str, Tensor], key: str) -> None:
    name, kind = _split(key)
    others = {MEAN: VAR, VAR: MEAN, COUNTER: MEAN}
    if kind not in others:
        raise ValueError(f"merge_statistics: only running statistics are allowed, got {key}. Use statistics_of.")
    if _key(name, others[kind]) not in statistics:
        raise ValueError(f"merge_statistics: mean and variance must both be present, got {key} alone.")


def _key(name: str, kind: str) -> str:
    return f"{name}.{kind}" if name else kind


def _split(key: str) -> tuple[str, str]:
    name, _, kind = key.rpartition(".")
    return name, kind
