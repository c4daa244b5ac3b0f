"""Load a checkpoint into a model tensor by tensor, as far as names and shapes agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.surgery.change import Change, Transaction
from steadynorm.surgery.checkpoints import state_for, why_no_numbers
from steadynorm.surgery.named_modules import batch_norms_of
from steadynorm.surgery.statistics import COUNTER, MEAN, VAR, write_found_

__all__ = ["load_tensors_"]


def load_tensors_(model: nn.Module, checkpoint: Mapping[str, Any] | nn.Module) -> Change:
    """Write a checkpoint's tensors into a model in place, matched by name, from any common form of checkpoint.

    A tensor of another shape, or of integers for floats, is refused by name; running statistics are written as by
    :func:`steadynorm.surgery.load_statistics_`. Tensors that the checkpoint does not have are kept.

    Args:
        model: the root.
        checkpoint: as ``torch.load`` gives it, see :func:`steadynorm.surgery.checkpoints.state_for`.

    Raises:
        ValueError: the checkpoint has none of the model's names, or none of its tensors can be written.
        TypeError: the checkpoint is not a mapping.
    """
    with Transaction("load_tensors_", model) as edits:
        state = state_for(model, checkpoint, verb=edits.verb)
        edits.notes.extend(state.notes)
        kinds = (MEAN, VAR, COUNTER)
        norms = [name for named in batch_norms_of(model) for name in named.names]
        statistics = {f"{name}.{kind}" if name else kind for name in norms for kind in kinds}
        own = dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))
        edits.consider(state.tensors)
        for name in state.tensors.keys() - statistics:
            _write(edits, name, own.get(name), state.tensors[name])
        if statistics & state.tensors.keys():
            write_found_(edits, model, state)
        return edits.finish()


def _write(edits: Transaction, name: str, own: Tensor | None, given: Tensor) -> None:
    why = "it is neither a parameter nor a buffer" if own is None else why_no_numbers(given) or _why_not(own, given)
    if why is not None or own is None:
        edits.refuse(name, "tensor", f"{why}.")
    elif not torch.equal(own.detach(), given.to(own)):
        edits.write_(own, given)
        edits.note_changed(name, "the model's numbers", "the checkpoint's")


def _why_not(own: Tensor, given: Tensor) -> str | None:
    """Say why a tensor cannot be written; None if it can."""
    if own.shape != given.shape:
        return f"of another shape: {tuple(given.shape)} for {tuple(own.shape)}"
    if own.is_floating_point() != given.is_floating_point():
        return f"{given.dtype} for {own.dtype}"
    return why_no_numbers(own)
