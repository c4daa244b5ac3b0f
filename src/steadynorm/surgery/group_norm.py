"""Replace batch norm by group norm, with the weight and bias that best fit the old layer's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from steadynorm.surgery.batches import Batch, Forward, evaluating, feed, randomness_kept
from steadynorm.surgery.change import Transaction
from steadynorm.surgery.kinds import Norm, evaluation_of, label
from steadynorm.surgery.named_modules import NamedModule
from steadynorm.surgery.runnable import check_runnable

__all__ = ["Reference", "build_group_norm", "groups_for", "start_from_data"]

MOST_GROUPS = 32  # the paper's own setting
FEWEST_CHANNELS = 16  # per group: on (N, C) input a group has no other values, and two values would always become ±1


def groups_for(channels: int) -> int:
    """Return the largest number of groups, up to 32, that divides the channels and leaves 16 per group; at least 1.

    Source: Wu & He 2018 (arXiv 1803.08494), table 3, for both numbers.
    """
    most = min(MOST_GROUPS, channels // FEWEST_CHANNELS)
    return next((groups for groups in range(most, 1, -1) if channels % groups == 0), 1)


def build_group_norm(
    old: Norm, *, layer_norm: bool, num_groups: int | None = None, eps: float | None = None
) -> tuple[nn.Module, list[str]]:
    """Build group norm for a batch norm's channels; weight and bias are not moved yet.

    Args:
        old: the batch norm.
        layer_norm: whether all channels are one group.
        num_groups: None chooses by :func:`groups_for`.
        eps: None takes the batch norm's.

    Raises:
        ValueError: ``num_groups`` does not divide the channels.
    """
    channels = old.num_features
    groups = 1 if layer_norm else groups_for(channels) if num_groups is None else num_groups
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(
            f"convert_: num_groups must be an integer that divides the channels, got {groups} for {channels}. "
            "Leave it out, or choose layers by where."
        )
    weight = old._parameters.get("weight")
    like: dict[str, Any] = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
    new = nn.GroupNorm(groups, channels, eps=old.eps if eps is None else eps, affine=weight is not None, **like)
    notes = []
    if groups == channels:
        notes.append("each channel is its own group: for (N, C) input only the bias remains")
    return new, notes


class Reference:
    """The original model, made of the same modules: some models cannot be copied (a lock, a tensor kept from a run).

    Args:
        edits: of the verb that replaces modules.
        norms: the modules to be replaced; their current weight and bias are kept.
    """

    def __init__(self, edits: Transaction, norms: Sequence[nn.Module]) -> None:
        self._edits = edits
        numbers = [getattr(norm, name, None) for norm in norms for name in ("weight", "bias")]
        self._values = [(each, each.detach().clone()) for each in numbers if isinstance(each, Tensor)]

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """Yield the original model; its current modules and values are restored afterwards."""
        now = [parameter.data for parameter, _ in self._values]
        with self._edits.as_before() as model:
            try:
                for parameter, before in self._values:
                    parameter.data = before
                yield model
            finally:
                for (parameter, _), data in zip(self._values, now, strict=True):
                    parameter.data = data


def start_from_data(
    edits: Transaction,
    reference: Reference,
    converted: Sequence[tuple[NamedModule, nn.Module]],
    batches: Sequence[Batch],
    forward: Forward | None,
) -> dict[str, float]:
    """Fit weight and bias of group norms to the outputs of the batch norms that they replaced.

        minimise Σ (γ·z + β − t)²  per channel:    γ = Σ(z − z̄)(t − t̄) / Σ(z − z̄)²        β = t̄ − γ·z̄

    t is the batch norm's output in the original model, z the group norm's normalized input in the current model.
    Layers are fitted in the order in which they run, since each changes the input of those after it.

    Args:
        edits: of the current model.
        reference: the original model.
        converted: each batch norm with its names, and the group norm that replaced it.
        batches: run once for each layer, in both models.
        forward: how a batch is run.

    Returns:
        the root mean square error of the model's output, relative to the original output, before and after.

    Raises:
        ValueError: there are no batches.
        RuntimeError: a batch norm is called from outside the submodules, where it cannot be replaced.
    """
    if not batches:
        raise ValueError("convert_: there must be at least one batch to start from, got none.")
    check_runnable("convert_", edits.model)
    unreached = {id(new): (named, new) for named, new in converted}
    error = _output_error(reference, edits, batches, forward)
    for key in _order([new for _, new in converted], edits.model, batches[0], forward):
        named, new = unreached.pop(key)
        fits = new.weight is not None and new.bias is not None
        if fits and not _fit_(edits, reference, named.module, new, batches, forward):
            why = "its input from the batches is not finite, or too large, so its weight and bias are kept."
            edits.refuse(named.name, label(new), why)
    for named, new in converted:
        if id(new) in unreached:
            edits.refuse(named.name, label(new), "not reached by the batches, so its weight and bias are kept.")
        elif new.weight is None or new.bias is None:
            edits.refuse(named.name, label(new), "it has no weight and bias to fit.")
    after = _output_error(reference, edits, batches, forward)
    return {"output_error_before_start": error, "output_error": after}


def _order(norms: list[nn.Module], model: nn.Module, batch: Batch, forward: Forward | None) -> list[int]:
    """Return the ids of the norms that a batch reaches, in the order of their first call."""
    met: dict[int, None] = {}
    with _watched({norm: _meets(met, norm) for norm in norms}):
        _run(model, batch, forward)
    return list(met)


def _meets(met: dict[int, None], norm: nn.Module) -> Callable[[Tensor], object]:
    return lambda x: met.setdefault(id(norm))


def _fit_(
    edits: Transaction,
    reference: Reference,
    batch_norm: Norm,
    group_norm: Norm,
    batches: Sequence[Batch],
    forward: Forward | None,
) -> bool:
    """Set one group norm's weight and bias by least squares; tell whether they are finite."""
    sums = _Regression()
    for batch in batches:
        with reference.in_place() as model:
            targets = [_batch_norm(batch_norm, x) for x in _inputs_of(batch_norm, model, batch, forward)]
        inputs = _inputs_of(group_norm, edits.model, batch, forward)
        for x, target in zip(inputs, targets, strict=True):
            sums.add(_group_norm(group_norm, x), target)
    slope, offset = sums.solve()
    if not bool((slope.to(group_norm.weight) + offset.to(group_norm.weight)).isfinite().all()):
        return False
    edits.write_(group_norm.weight, slope)
    edits.write_(group_norm.bias, offset)
    return True


def _inputs_of(norm: nn.Module, model: nn.Module, batch: Batch, forward: Forward | None) -> list[Tensor]:
    """Return a module's input in each of its calls."""
    inputs: list[Tensor] = []
    with _watched({norm: inputs.append}):
        _run(model, batch, forward)
    return inputs


class _Regression:
    """Least squares of one line per channel, from centred sums in float64 that are merged batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.spread = torch.zeros(())

    def add(self, z: Tensor, t: Tensor) -> None:
        """Add the pairs of a batch, shape (N, C, ...) each."""
        pair = torch.stack([each.double().transpose(0, 1).flatten(1) for each in (z, t)])
        count, mean = pair.shape[2], pair.mean(2)
        rest = pair - mean[:, :, None]
        spread = torch.stack([(rest[0] * rest[0]).sum(1), (rest[0] * rest[1]).sum(1)])
        if self.count:
            delta, total = mean - self.mean, self.count + count
            spread = (
                spread
                + self.spread
                + torch.stack([delta[0] * delta[0], delta[0] * delta[1]]) * (self.count * count / total)
            )
            mean, count = self.mean + delta * (count / total), total
        self.count, self.mean, self.spread = count, mean, spread

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return slope and offset; where z is constant, slope 0."""
        moves = self.spread[0] > 1e-12 * self.count
        slope = torch.where(moves, self.spread[1] / torch.where(moves, self.spread[0], 1), 0)
        return slope, self.mean[1] - slope * self.mean[0]


def _batch_norm(norm: Norm, x: Tensor) -> Tensor:
    """Normalize as a batch norm does in evaluation, without its activation."""
    numbers = evaluation_of(norm)
    values = (numbers.mean, numbers.var, numbers.weight, numbers.bias)
    mean, var, weight, bias = (None if each is None else each.double() for each in values)
    return F.batch_norm(x.double(), mean, var, weight, bias, training=mean is None, eps=numbers.eps)


def _group_norm(norm: Norm, x: Tensor) -> Tensor:
    """Normalize as a group norm does, without its weight and bias."""
    return F.group_norm(x.double(), norm.num_groups, eps=norm.eps)


def _output_error(reference: Reference, edits: Transaction, batches: Sequence[Batch], forward: Forward | None) -> float:
    """Compare all floating-point outputs of the original and the current model over the batches."""
    wrong, whole = 0.0, 0.0
    for batch in batches:
        with reference.in_place() as before:
            old = [each.clone() for each in _floating(_run(before, batch, forward))]
        with edits.replaced_stand_still():
            new = _floating(_run(edits.model, batch, forward))
        for a, b in zip(old, new, strict=True):
            wrong += float((a.double() - b.double()).square().sum())
            whole += float(a.double().square().sum())
    return math.sqrt(wrong / whole) if whole else math.sqrt(wrong)


def _floating(output: object) -> list[Tensor]:
    return [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.is_floating_point()]


def _run(model: nn.Module, batch: Batch, forward: Forward | None) -> object:
    with randomness_kept(model), evaluating(model):
        return (forward or feed)(model, batch)


@contextmanager
def _watched(watchers: dict[nn.Module, Callable[[Tensor], object]]) -> Iterator[None]:
    """Call each module's watcher with its input."""

    def hook(watcher: Callable[[Tensor], object]) -> Callable[..., None]:
        return lambda module, arguments: (watcher(arguments[0]), None)[1]

    handles = [module.register_forward_pre_hook(hook(watcher)) for module, watcher in watchers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
