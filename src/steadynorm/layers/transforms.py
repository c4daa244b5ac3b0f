"""What a layer's running estimates must be inside a transform of torch.func."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["check_statistics_take_part"]


def check_statistics_take_part(layer: nn.Module, input: Tensor) -> None:
    """Raise RuntimeError where a transform's batch is to move running estimates that lie outside the transform.

    Their new values would leave the transform as a side effect, which torch.func does not allow; raised before
    anything has moved.
    """
    if torch.compiler.is_compiling():  # Dynamo reads no level; the operations in place are refused by torch itself
        return
    level = torch._C._functorch.maybe_get_level
    for name, buffer in layer.named_buffers(recurse=False):
        if buffer.numel() and (level(buffer) or 0) < (level(input) or 0):
            raise RuntimeError(
                f"{type(layer).__name__}: in training inside a transform of torch.func (grad, vjp, jvp, vmap, ...) the "
                f"running estimates must be arguments of the transformed function, got {name} from outside. Pass the "
                "buffers in by torch.func.functional_call (mapped as well, for vmap), call .eval(), or build the layer "
                "with track_running_stats=False."
            )
