"""Arms of a given network: its batch norms replaced by other layers, and nothing else changed.

Kinds of norm are made by :func:`steadynorm.surgery.convert_`: eps, momentum, weight, bias and statistics of each batch
norm are kept. A layer that is no kind of norm (instance norm, a user class) is rebuilt for the channels, with weight
and bias where it has them; an activation that a batch norm had in itself follows it. ``none`` leaves a bias for each
channel, which starts at zero: with a convolution in front it is that convolution's bias. ``torch_batch_norm`` leaves
alone what is none of ours, and ``as_built`` everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.lab.arms import parse_arm
from steadynorm.lab.normalizations import AS_BUILT, Normalization, find_normalization
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.surgery import convert_
from steadynorm.surgery.change import Change, Refused, Transaction
from steadynorm.surgery.kinds import kind_of, label, why_unknown
from steadynorm.surgery.named_modules import batch_norms_of, named_modules_of

__all__ = ["ChannelBias", "with_arm"]

LISTED = 3


class ChannelBias(nn.Module):
    """y = x + bias, one bias for each channel: replaces a batch norm in a network without normalization.

    Args:
        num_features: C.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, *) to the same shape."""
        return input + self.bias.view(-1, *[1] * (input.dim() - 2))


def with_arm(model: nn.Module, arm: str, *, network: str, example: Tensor, **training: int) -> tuple[nn.Module, str]:
    """Replace a model's batch norms by an arm's layers.

    Args:
        model: the given model; changed in place.
        arm: a normalization, or ``as_built``.
        network: name of the model in messages.
        example: images, if the model has to run.
        training: see ``Normalization.build``.

    Returns:
        the model, a new object only if its root is a batch norm; and a sentence on what was replaced and left.

    Raises:
        UserError: the arm is unknown, or no layer can be replaced by it.
    """
    found = parse_arm(arm)
    if found.target == AS_BUILT:
        if found.options:
            raise UserError(f"--arms: {arm}: {AS_BUILT} has no settings. Drop them.")
        return model, "its layers are as they were built"
    if not batch_norms_of(model):
        raise UserError(f"--arms: {arm}: {network} has no batch norm to replace{_unknown(model)}.")
    norm = find_normalization(arm)
    try:
        ours = any(kind_of(each.module)[0].ours for each in batch_norms_of(model))
        if found.target == "torch_batch_norm" and not found.options and not ours:
            return model, "its batch norms are left as they are"
        if norm.converts is None:
            return _replaced(model, norm, is_none=found.target == "none", example=example, **training)
        kind, options = norm.converts(**training)
        change = _convert(model, kind, example, **options | dict(norm.settings or {}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--arms: {arm}: {network} fails with it: {one_line(error)}.") from error
    after = Counter(each.after.partition("(")[0] for each in change.changed)
    return change.model, _said(after, change.refused)


def _convert(model: nn.Module, kind: str, example: Tensor, **options: Any) -> Change:  # noqa: ANN401 (the layer's)
    """Convert a model; on the meta device it cannot run, so facts that only a run reveals are errors there.

    Raises:
        ValueError: nothing can be converted; or, on the meta device, not all of it.
    """
    change = convert_(model, kind, example=None if example.is_meta else example, **options)
    if example.is_meta and change.refused:
        raise ValueError(f"without numbers it is not known how: {change.refused[0]}")
    return change


def _replaced(
    model: nn.Module, norm: Normalization, *, is_none: bool, example: Tensor, **training: int
) -> tuple[nn.Module, str]:
    """Turn all batch norms into torch's, so that activations are separate, and replace them."""
    change = _convert(model, "torch_batch_norm", example)
    model = change.model
    refused = {each.name for each in change.refused}
    build: Callable[..., nn.Module] = partial(norm.build, activation=None, **training)
    after: Counter[str] = Counter()
    edits = Transaction("with_arm", model)
    for named in batch_norms_of(model):
        old: Any = named.module
        if named.name in refused:
            continue
        channels, dimensions = old.num_features, kind_of(old)[1]
        new = ChannelBias(channels) if is_none else build(channels, dimensions=dimensions)
        _carry(old, new)
        after["a bias per channel, from zero" if is_none else type(_inner(new)).__name__] += 1
        edits.replace(old, new)
    return edits.model, _said(after, change.refused)


def _inner(module: nn.Module) -> nn.Module:
    return getattr(module, "norm", module)


@torch.no_grad()
def _carry(old: nn.Module, new: nn.Module) -> None:
    """Copy device, dtype, mode and, unless the new layer only adds a bias, weight and bias of a batch norm."""
    place = next((each for each in old.parameters()), None)
    if place is not None:
        new.to(place.device, place.dtype)
    new.train(old.training)
    if isinstance(new, ChannelBias):
        return
    for name in ("weight", "bias"):
        mine, theirs = getattr(_inner(new), name, None), getattr(old, name, None)
        if isinstance(mine, nn.Parameter) and isinstance(theirs, Tensor) and mine.shape == theirs.shape:
            mine.copy_(theirs)


def _said(after: Counter[str], refused: Iterable[Refused]) -> str:
    """Describe what batch norms became, and which are left."""
    counts = (f"{count} batch norm{'' if count == 1 else 's'} became {name}" for name, count in after.items())
    became = ", ".join(counts) or "no batch norm became another"
    left = [f"{each.name} ({each.what}): {each.why}" for each in refused]
    some = "; ".join(left[:LISTED]) + (f"; and {len(left) - LISTED} more" if len(left) > LISTED else "")
    return became + (f". Left as they were: {some}" if left else "")


def _unknown(model: nn.Module) -> str:
    """Name layers that only look like batch norms, and the arm for such a model."""
    for named in named_modules_of(model):
        if why := why_unknown(named.module):
            return f" ({named.name}: {label(named.module)}: {why.rstrip('.')}). Use --arms {AS_BUILT}"
    return f". Use --arms {AS_BUILT}"
