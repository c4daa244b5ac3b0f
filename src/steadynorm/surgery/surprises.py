"""Describe behaviour of a converted layer that its user may not expect."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from steadynorm.surgery.kinds import Norm, kind_of

__all__ = ["surprises_of"]

_SYNCHRONISED = ("sync_batch_norm", "torch_sync_batch_norm")
_LOST = {
    "frozen_batch_norm": "no longer frozen: in training it normalizes by its batch, and its statistics follow",
    "gated_batch_norm": "evaluation no longer depends on the batch",
    "masked_batch_norm": "no longer takes a mask",
    **dict.fromkeys(_SYNCHRONISED, "in training each process normalizes by its own batch"),
}


def surprises_of(old: Norm, new: Norm) -> list[str]:
    """Describe how a layer behaves differently from the one that it replaces.

    Args:
        old: a batch norm.
        new: the layer that replaces it, with its state.
    """
    before, after = kind_of(old)[0].name, kind_of(new)[0].name
    if before == after:
        return []
    still_synchronised = before in _SYNCHRONISED and after in (*_SYNCHRONISED, "masked_batch_norm")
    lost = [_LOST[before]] if before in _LOST and not still_synchronised else []
    return [*lost, *_gained(before, after, new)]


def _gained(before: str, after: str, new: Norm) -> Iterator[str]:
    if after == "gated_batch_norm":
        yield "evaluation depends on the batch, as far as the gate trusts it"
    if after == "masked_batch_norm":
        yield "plain batch norm wherever it is called without mask and lengths"
    if after == "batch_renorm":
        yield from _renorm_schedule(new)
    if "ghost_batch_norm" in (before, after) and new._buffers.get("running_mean") is None:
        by = "the whole batch" if before == "ghost_batch_norm" else f"chunks of at most {new.ghost_batch_size} samples"
        yield f"it has no running statistics, so evaluation changes too: it normalizes by {by}"


def _renorm_schedule(new: Norm) -> Iterator[str]:
    """Say how long batch renorm is still plain batch norm, from its counter of steps."""
    counter: Tensor | None = new._buffers.get("num_batches_tracked")
    seen = 0 if counter is None or counter.is_meta else int(counter)
    plain = max(new.warmup_steps - seen, 0)
    ramp = max(new.warmup_steps + new.ramp_steps - max(seen, new.warmup_steps), 0)
    if plain or ramp:
        parts = [f"plain batch norm for {plain:,} more training steps"] if plain else []
        parts += (
            [f"bounds that grow to r_max and d_max over {ramp:,} {'after them' if plain else 'more'}"] if ramp else []
        )
        yield f"{', then '.join(parts)}; set it by convert_(..., warmup_steps=..., ramp_steps=...)"
