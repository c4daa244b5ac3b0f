"""Write a layer's running statistics, and reset the recent batches that our layers keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steadynorm.layers.base import BatchNormBase
from steadynorm.surgery.change import Transaction
from steadynorm.surgery.checkpoints import why_no_numbers
from steadynorm.surgery.kinds import Norm

__all__ = [
    "MEAN",
    "VAR",
    "edit_batch_memory_",
    "forget_batches_",
    "summary",
    "why_not_writable",
    "write_statistics_",
]

MEAN, VAR = "running_mean", "running_var"


def why_not_writable(module: Norm, mean: Tensor, var: Tensor) -> str | None:
    """Say why a mean and variance cannot be a layer's running statistics; None if they can.

    Args:
        module: with running statistics.
        mean: of any shape, dtype and device.
        var: of any shape, dtype and device.
    """
    for name, stored, given in ((MEAN, module.running_mean, mean), (VAR, module.running_var, var)):
        for where, each in (("the layer's", stored), ("the given", given)):
            if why := why_no_numbers(each):
                return f"{where} {name} {why}. {'Load the weights first' if each.is_meta else 'Make it dense'}."
        if given.shape != stored.shape:
            return f"of another shape: {name} {tuple(given.shape)} for {tuple(stored.shape)}."
        if not given.is_floating_point():
            return f"{name} must be of a floating dtype, got {given.dtype}."
        bad = ~given.to(stored.dtype).isfinite()
        if bool(bad.any()):
            return f"{name} must be finite in {stored.dtype}, got others in {_channels(bad)}."
    negative = var.to(module.running_var.dtype) < 0
    if bool(negative.any()):
        return f"{VAR} must not be negative, got as little as {float(var.min()):.4g} in {_channels(negative)}."
    return None


def _channels(chosen: Tensor) -> str:
    number, first = int(chosen.sum()), int(chosen.flatten().nonzero()[0])
    return f"channel {first}" if number == 1 else f"{number} channels, the first {first}"


def write_statistics_(
    edits: Transaction, module: Norm, mean: Tensor, var: Tensor, *, batches: int | None = None
) -> list[str]:
    """Write running statistics in place, in the layer's dtype and on its device, and reset its recent batches.

    Args:
        edits: of the verb.
        module: with running statistics.
        mean: shape (C,).
        var: shape (C,), unbiased.
        batches: new value of its counter; None keeps it.

    Returns:
        notes on the consequences.
    """
    edits.write_(module.running_mean, mean)
    edits.write_(module.running_var, var)
    counter = getattr(module, "num_batches_tracked", None)
    if batches is not None and counter is not None:
        edits.write_(counter, torch.tensor(batches))
    return forget_batches_(edits, module)


def forget_batches_(edits: Transaction, module: Norm) -> list[str]:
    """Reset the recent batches that a layer of ours keeps: they belong to other running statistics.

    Returns:
        notes on the consequences.
    """
    if not isinstance(module, BatchNormBase):
        return []
    edit_batch_memory_(edits, module, module.forget_batches_)
    if module.running != "self_tuned":
        return []
    return ["it tunes its own momentum, which restarts: the next training batch replaces these statistics"]


def edit_batch_memory_(edits: Transaction, module: BatchNormBase, edit: Callable[[], None]) -> None:
    """Change the recent batches that a layer of ours keeps, so that undo restores them.

    Args:
        edits: of the verb.
        module: with running statistics.
        edit: makes the change.
    """
    before = module.batch_memory()
    # The next batches change the memory as well, so undo always fits.
    edits.edit(edit, lambda: module.restore_batch_memory_(before), lambda: True)


def summary(mean: Tensor, var: Tensor) -> str:
    """Summarize statistics in words."""
    numbers = (
        f"{name} {float(each.min()):.4g} to {float(each.max()):.4g}"
        for name, each in (("mean", mean), ("variance", var))
    )
    return ", ".join(numbers)
