"""Numbers written into a layer's running estimates, with what a layer of ours keeps beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.layers.shell import Shell
from steadynorm.surgery.change import Journal
from steadynorm.surgery.kinds import Norm

__all__ = ["begin_anew_", "summary", "write_statistics_"]


def write_statistics_(
    journal: Journal, module: Norm, mean: Tensor, var: Tensor, *, batches: int | None = None
) -> list[str]:
    """Write running estimates in place, in the layer's dtype and on its device, and begin its window and bank anew.

    Args:
        journal: of the verb.
        module: with running estimates.
        mean: shape (C,).
        var: shape (C,), unbiased.
        batches: what its counter is to say; None leaves it.

    Returns:
        notes on what goes with that.
    """
    journal.write_(module.running_mean, mean)
    journal.write_(module.running_var, var)
    if batches is not None and module.num_batches_tracked is not None:
        journal.write_(module.num_batches_tracked, torch.tensor(batches))
    return begin_anew_(journal, module)


def begin_anew_(journal: Journal, module: Norm) -> list[str]:
    """Forget the batches that a layer of ours keeps: they belong to other running estimates.

    Returns:
        notes on what goes with that.
    """
    if not isinstance(module, Shell):
        return []
    if module._window is not None and module._window_seen is not None:
        at = module._window_at
        journal.write_(module._window, module._window)  # what undo needs: the next batches come to stand there
        journal.write_(module._window_seen, torch.zeros_like(module._window_seen))
        # Not set_attribute, by which undo would be refused once the next batch has moved it.
        journal.edit(lambda: setattr(module, "_window_at", 0), lambda: setattr(module, "_window_at", at), lambda: True)
    if not module._self_tunes():
        return []
    for name, tensor in module._new_bank().items():
        journal.write_(getattr(module, f"_bank_{name}"), tensor)
    return ["it tunes its momentum itself, and begins anew: the next training batch takes the place of these numbers"]


def summary(mean: Tensor, var: Tensor) -> str:
    """Say in words what statistics are like."""
    numbers = (
        f"{name} {float(each.min()):.4g} to {float(each.max()):.4g}"
        for name, each in (("mean", mean), ("variance", var))
    )
    return ", ".join(numbers)
