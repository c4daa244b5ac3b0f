"""Run one training step without an optimizer, and count the updates of running statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.doctor.first_batch import first_samples, samples_of
from steadynorm.doctor.untouched import uncompiled
from steadynorm.surgery.batches import Forward
from steadynorm.surgery.flow.trial import preserved_state, tensors_in
from steadynorm.surgery.named_modules import NamedModule

__all__ = ["TrainingStep", "train_once"]

_SAMPLES = 4
"""Samples for counting updates; a model that cannot train on so few uses the whole batch."""
_WHAT = "a step of training, for double updates"


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Evidence from the step; its fields are those of :class:`steadynorm.doctor.batch_evidence.Runs`."""

    updates: Mapping[str, int] = field(default_factory=dict)
    pieces: Mapping[str, int] = field(default_factory=dict)
    followed: Mapping[str, float] = field(default_factory=dict)


def train_once(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
    unread: list[str],
) -> TrainingStep:
    """Train for one step, and count the updates of each layer's running statistics beyond one for each call.

    Args:
        model: in any mode; its state and gradients are restored.
        layers: norms; those without a counter of batches are left out.
        batch: the batch whose first samples are used.
        forward: runs the model on it.
        unread: gets a line on why the step failed; the result is then empty.
    """
    if any(getattr(each, "_post_accumulate_grad_hooks", None) for each in model.parameters()):
        unread.append(f"{_WHAT}: a backward would run the hooks that gradients have.")
        return TrainingStep()
    given = [each for _, each in tensors_in(batch) if each.is_leaf and each.requires_grad]
    with _gradients_kept([*model.parameters(), *given]):
        few = first_samples(batch, _SAMPLES)
        if few is not None:
            try:
                return _trained(model, layers, few, forward)
            except Exception:  # the model may reject few samples with any error; the whole batch shows the real one
                pass
        try:
            return _trained(model, layers, batch, forward)
        except Exception as error:  # a forward in training may need more than one in evaluation, such as targets
            unread.append(f"{_WHAT}: {error or type(error).__name__}")
            return TrainingStep()


@contextmanager
def _gradients_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Clear the tensors' gradients in the block, and restore them afterwards."""
    before = [(each, each.grad) for each in tensors]
    for each in tensors:
        each.grad = None
    try:
        yield
    finally:
        for each, gradient in before:
            each.grad = gradient


def _trained(
    model: nn.Module,
    layers: Sequence[NamedModule],
    batch: Any,  # noqa: ANN401 (as the loader gives it)
    forward: Forward,
) -> TrainingStep:
    counted: dict[str, Any] = {
        named.name: named.module
        for named in layers
        if isinstance(getattr(named.module, "num_batches_tracked", None), Tensor)
        and not isinstance(named.module, torch.jit.ScriptModule)  # which take no hooks
    }
    calls = dict.fromkeys(counted, 0)
    given: dict[str, list[Tensor]] = {name: [] for name in counted}
    sizes: dict[str, list[int]] = {name: [] for name in counted}

    def count(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls[name] += 1
        if arguments and isinstance(arguments[0], Tensor):
            x = arguments[0].detach().double()
            given[name].append(x.transpose(0, 1).flatten(1).mean(1))
            sizes[name].append(len(x))

    with preserved_state(model), uncompiled():
        before = {name: int(module.num_batches_tracked) for name, module in counted.items()}
        means = {name: _running_mean(module) for name, module in counted.items()}
        handles = [module.register_forward_pre_hook(partial(count, name)) for name, module in counted.items()]
        try:
            for module in model.modules():
                module.training = True
            with torch.enable_grad():
                output = forward(model, batch)
                made = dict(calls)
                shares = {
                    name: _followed(module, means[name], given[name])
                    for name, module in counted.items()
                    if made[name] == 1
                }
                moves = {name: _moves(counted[name], share) for name, share in shares.items()}
                total = sum(each.double().sum() for _, each in tensors_in(output) if each.requires_grad)
                if isinstance(total, Tensor):
                    total.backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
        after = {name: int(module.num_batches_tracked) for name, module in counted.items()}
    unseen = {name: max(1, made[name]) for name in calls}  # a forward called directly, or in a trace, runs no hooks
    updates = {name: max(after[name] - before[name] - unseen[name], moves.get(name, 1) - 1) for name in calls}
    whole = samples_of(batch)
    pieces = {name: max(each) for name, each in sizes.items() if len(each) > 1 and max(each) < whole}
    followed = {name: share for name, share in shares.items() if share is not None}
    return TrainingStep(updates=updates, pieces=pieces, followed=followed)


def _running_mean(module: Any) -> Tensor | None:  # noqa: ANN401 (a norm)
    mean = getattr(module, "running_mean", None)
    return mean.detach().double().flatten().clone() if isinstance(mean, Tensor) else None


def _followed(module: Any, before: Tensor | None, given: Sequence[Tensor]) -> float | None:  # noqa: ANN401 (a norm)
    """Return the fraction of the way to the batch mean that one call moved a running mean; None for other moves."""
    after = _running_mean(module)
    if before is None or after is None or len(given) != 1 or before.shape != given[0].shape:
        return None
    towards, moved = given[0] - before, after - before
    size = towards.square().sum()
    share = float((moved * towards).sum() / size) if size > 1e-6 * before.square().sum() else 0.0
    return share if 0 < share < 1 and (moved - share * towards).norm() <= 0.01 * moved.norm() else None


def _moves(module: Any, share: float | None) -> int:  # noqa: ANN401 (a norm)
    """Return the number k of updates in one call, from (1 − momentum)ᵏ; 1 if no k fits."""
    momentum = getattr(module, "momentum", None)
    if share is None or not isinstance(momentum, float) or not 0 < momentum < 1:
        return 1
    times = math.log1p(-share) / math.log1p(-momentum)
    return max(1, round(times)) if abs(times - round(times)) < 0.05 else 1
