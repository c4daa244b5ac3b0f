"""What a layer asks of transforms and tracers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadynorm.functional.checks import check_one_size

__all__ = ["check_is_tensor", "check_statistics_take_part"]


def check_statistics_take_part(layer: nn.Module, input: Tensor) -> None:
    """Raise RuntimeError where a transform's batch is to move running estimates that lie outside the transform.

    Their new values would leave the transform as a side effect, which torch.func does not allow; raised before
    anything has moved.
    """
    if torch.compiler.is_compiling():  # Dynamo reads no level; the operations in place are refused by torch itself
        return
    if getattr(layer, "update_every", 1) > 1:
        raise RuntimeError(
            f"{type(layer).__name__}: in training inside a transform of torch.func there can be no window of batches, "
            f"which is no argument of the transformed function, got update_every={layer.update_every}. Use "
            "update_every=1, or call .eval()."
        )
    level = torch._C._functorch.maybe_get_level
    for name, buffer in layer.named_buffers(recurse=False):
        if (level(buffer) or 0) < (level(input) or 0):
            raise RuntimeError(
                f"{type(layer).__name__}: in training inside a transform of torch.func (grad, vjp, jvp, vmap, ...) the "
                f"running estimates must be arguments of the transformed function, got {name} from outside. Pass the "
                "buffers in by torch.func.functional_call (mapped as well, for vmap), call .eval(), or build the layer "
                "with track_running_stats=False."
            )


def check_is_tensor(
    layer: nn.Module, input: Tensor, *, instead: str = "Call .eval() where evaluation is batch norm's"
) -> None:
    """Raise for what is no tensor of one size, where what is computed depends on sizes and changes statistics.

    Args:
        layer: that is called.
        input: that it is called with.
        instead: what to do where torch.fx calls it with a proxy.

    Raises:
        TypeError: a proxy of torch.fx, or something else that is no tensor.
        ValueError: a nested or sparse tensor.
    """
    if isinstance(input, Tensor):
        check_one_size("input", input)
    elif isinstance(input, torch.fx.Proxy):
        raise TypeError(
            f"{type(layer).__name__}: torch.fx.symbolic_trace must not go into a layer that looks at its batch, got a "
            f"Proxy. {instead}, or trace with a Tracer whose is_leaf_module holds for the layer."
        )
    else:
        raise TypeError(
            f"{type(layer).__name__}: input must be a torch.Tensor, got {type(input).__name__}. Use torch.as_tensor."
        )
