"""What a layer refuses to transforms and tracers (torch.func, fx, export, jit), and what torch.jit.script compiles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.functional.checks import check_one_size
from steadynorm.ops.observers import is_recorded

__all__ = [
    "check_is_tensor",
    "check_not_recorded",
    "check_scriptable",
    "check_statistics_take_part",
    "evaluate_scripted",
]


def check_statistics_take_part(layer: nn.Module, input: Tensor) -> None:
    """Raise RuntimeError where a batch is to move running statistics, and a transform or a record does not let it.

    Estimates outside a transform would get their new values as a side effect, which torch.func does not allow; raised
    before anything has moved.
    """
    if is_recorded():
        _check_record(layer)
        return
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
                f"running statistics must be arguments of the transformed function, got {name} from outside. Pass the "
                "buffers in by torch.func.functional_call (mapped as well, for vmap), call .eval(), or build the layer "
                "with track_running_stats=False."
            )


def _check_record(layer: nn.Module) -> None:
    """Refuse what a record of one forward cannot do for the next ones."""
    name, every = type(layer).__name__, getattr(layer, "update_every", 1)
    if every > 1:
        _refuse(
            f"{name}: in training under torch.export or torch.jit.trace there can be no window of batches, which is no "
            f"part of the module's state, got update_every={every}. Use update_every=1, or call .eval()."
        )
    if getattr(layer, "nonfinite", "propagate") == "raise" and not torch.compiler.is_compiling():
        _refuse(
            f"{name}: in training under torch.jit.trace nothing can be raised for a later batch, got "
            "nonfinite='raise'. Use nonfinite='skip', call .eval(), or use torch.export."
        )


def check_not_recorded(layer: nn.Module) -> None:
    """Raise RuntimeError where torch.export or torch.jit.trace records a training forward over several ranks."""
    if is_recorded():
        _refuse(
            f"{type(layer).__name__}: in training over several ranks a gradient must flow between them, which neither "
            "torch.export nor torch.jit.trace records. Call .eval()."
        )


def _refuse(message: str) -> None:
    raise RuntimeError(message)


# Dynamo, by which a strict export looks at the layers, shows no message of what is raised in the code that it traces.
# This is what torch.compiler.assume_constant_result does, which would import the compiler.
vars(_refuse)["_dynamo_marked_constant"] = True


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
        check_one_size(type(layer).__name__, "input", input)
    elif isinstance(input, torch.fx.Proxy):
        raise TypeError(
            f"{type(layer).__name__}: torch.fx.symbolic_trace must not go into a layer that looks at its batch, got a "
            f"Proxy. {instead}, or trace with a Tracer whose is_leaf_module holds for the layer."
        )
    else:
        raise TypeError(
            f"{type(layer).__name__}: input must be a torch.Tensor, got {type(input).__name__}. Use torch.as_tensor."
        )


def check_scriptable(layer: nn.Module, *, is_batch_norm: bool) -> None:
    """Raise TypeError for a layer whose evaluation is not batch norm's by stored statistics.

    Args:
        layer: any of ours.
        is_batch_norm: whether its class evaluates as batch norm does, where there are running statistics.
    """
    name = type(layer).__name__
    if not is_batch_norm:
        raise TypeError(
            f"{name}: torch.jit.script must find a layer that evaluates as batch norm does, got {name}. Use "
            "torch.export or torch.jit.trace."
        )
    if layer.running_mean is None or layer.running_var is None:
        raise TypeError(
            f"{name}: torch.jit.script must find running statistics, got running_mean=None. Use torch.export or "
            "torch.jit.trace."
        )


def evaluate_scripted(
    input: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Normalize by the running statistics, add, activate, in code that torch.jit.script understands.

    Args:
        input: shape (N, C, ...).
        residual: shape of input, or None.
        mean: shape (C,).
        var: shape (C,).
        weight: shape (C,), or None for 1; of another dtype than mean where the module is of half precision.
        bias: shape (C,), or None for 0; likewise.
        eps: added to the variance.
        activation: ``relu``, ``leaky_relu``, ``silu`` or None.

    Returns:
        shape and dtype of input.
    """
    weight = weight if weight is None else weight.to(mean.dtype)
    bias = bias if bias is None else bias.to(mean.dtype)
    y = F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
    if residual is not None:
        if residual.shape != input.shape:
            raise RuntimeError(f"batch_norm: residual must have the input's shape {input.shape}, got {residual.shape}.")
        y = y + residual
    if activation is None:  # TorchScript compares no optional string
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "leaky_relu":
        return F.leaky_relu(y)  # whose default slope is ours
    return F.silu(y)
