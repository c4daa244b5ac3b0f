"""Checks for transforms and tracers (torch.func, fx, export, jit), and evaluation in code for torch.jit.script."""

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
    """Raise RuntimeError if a transform or a recording does not allow a batch to update the running statistics.

    Updating running statistics from outside a transform is a side effect, which torch.func does not allow. The check
    runs before anything is updated.
    """
    if is_recorded():
        _check_record(layer)
        return
    if torch.compiler.is_compiling():  # Dynamo cannot read levels; torch itself refuses the in-place operations
        return
    if getattr(layer, "update_every", 1) > 1:
        raise RuntimeError(
            f"{type(layer).__name__}: training inside a transform of torch.func supports no window of batches, "
            f"because the window is not an argument of the transformed function, got "
            f"update_every={layer.update_every}. Use update_every=1, or call .eval()."
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
    """Refuse options that the recording of one forward cannot apply to later batches."""
    name, every = type(layer).__name__, getattr(layer, "update_every", 1)
    if every > 1:
        _refuse(
            f"{name}: training under torch.export or torch.jit.trace supports no window of batches, which is not part "
            f"of the module's state, got update_every={every}. Use update_every=1, or call .eval()."
        )
    if getattr(layer, "nonfinite", "propagate") == "raise" and not torch.compiler.is_compiling():
        _refuse(
            f"{name}: in training under torch.jit.trace nothing can be raised for a later batch, got "
            "nonfinite='raise'. Use nonfinite='skip', call .eval(), or use torch.export."
        )


def check_not_recorded(layer: nn.Module) -> None:
    """Raise RuntimeError if torch.export or torch.jit.trace records a training forward over several ranks."""
    if is_recorded():
        _refuse(
            f"{type(layer).__name__}: in training over several ranks a gradient must flow between them, which neither "
            "torch.export nor torch.jit.trace records. Call .eval()."
        )


def _refuse(message: str) -> None:
    raise RuntimeError(message)


# Dynamo, which a strict export uses, drops the message of an exception that is raised in the code that it traces. This
# has the effect of torch.compiler.assume_constant_result, without importing the compiler.
vars(_refuse)["_dynamo_marked_constant"] = True


def check_is_tensor(
    layer: nn.Module, input: Tensor, *, instead: str = "Call .eval() where evaluation is batch norm's"
) -> None:
    """Raise unless the input is a dense tensor, for layers that read its sizes or change statistics.

    Args:
        layer: the layer that is called.
        input: its input.
        instead: advice for a proxy of torch.fx, for the message.

    Raises:
        TypeError: a proxy of torch.fx, or anything else that is not a tensor.
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
    """Raise TypeError for a layer that does not evaluate as batch norm by running statistics.

    Args:
        layer: any layer of this package.
        is_batch_norm: whether its class, given running statistics, evaluates as batch norm.
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
    """Normalize by the running statistics, add and activate, in code that torch.jit.script can compile.

    Args:
        input: shape (N, C, ...).
        residual: shape of input, or None.
        mean: shape (C,).
        var: shape (C,).
        weight: shape (C,), or None for 1; may have another dtype than mean, in a half-precision module.
        bias: shape (C,), or None for 0; may have another dtype than mean too.
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
    if activation is None:  # TorchScript cannot compare an optional string
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "leaky_relu":
        return F.leaky_relu(y)  # default slope 0.01, as ours
    return F.silu(y)
