"""The four kernels as operations of torch, under ``torch.ops.steadynorm``.

Compilers, exporters and function transforms see four opaque operations. Each chooses its implementation when it
runs. Two more operations copy tensors for compiled graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops import dispatch
from steadynorm.ops.dispatch import choose_backend, implementation
from steadynorm.ops.observers import is_recorded, unobserved
from steadynorm.ops.reference import Activation

__all__ = [
    "kernels_for",
    "moments",
    "snapshot",
    "transform",
    "transform_grad",
    "transform_sums",
    "unless_recomputing",
]

_COMMON = "Tensor x, Tensor center, Tensor scale, Tensor shift, Tensor? residual, str? activation"
_NAMES = ("moments", "transform", "transform_sums", "transform_grad", "snapshot", "unless_recomputing")
# A process can hold several copies of this module: one that was reloaded, or imported again beside models of the first.
# The first registers with torch, and what it registers calls the newest. Its library must live as long: a library takes
# its operations with it, and a reload binds this name again.
_REGISTERED = {name for name in _NAMES if hasattr(torch.ops.steadynorm, name)}
_library: torch.library.Library = (
    globals().get("_library") or torch.library.Library("steadynorm", "FRAGMENT")  # type: ignore[no-untyped-call]
)


def _define(name: str, signature: str, run: Callable[..., Any], *tags: torch.Tag) -> None:
    if name not in _REGISTERED:
        _library.define(f"{name}({signature}", tags=(torch.Tag.pt2_compliant_tag, *tags))  # type: ignore[no-untyped-call]
        _library.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Tell torch the shapes of an operation's results."""
    if name in _REGISTERED:
        return lambda function: function
    result: Callable[..., Any] = torch.library.register_fake(f"steadynorm::{name}", lib=_library)
    return result


def _differentiate(name: str, backward: Callable[..., Any], save: Callable[..., Any] | None = None) -> None:
    if name not in _REGISTERED:
        torch.library.register_autograd(f"steadynorm::{name}", backward, setup_context=save, lib=_library)


def _register(name: str, signature: str) -> Callable[..., Any]:
    """Define an operation that hands its arguments to the chosen implementation's function of the same name."""
    at = 1 if "dy" in signature else 0

    def run(*arguments: Any) -> Any:  # noqa: ANN401 (as the signature says)
        newest = sys.modules.get(dispatch.__name__, dispatch)
        others = () if name == "moments" else (*arguments[:at], arguments[at + 4])
        result = getattr(newest.implementation(newest.choose_backend(arguments[at], *others)), name)(*arguments)
        # The list omits an absent result.
        return [each for each in result if each is not None] if name == "transform_grad" else result

    _define(name, signature, run)
    operation: Callable[..., Any] = getattr(torch.ops.steadynorm, name).default
    return operation


_moments = _register("moments", "Tensor x) -> (Tensor, Tensor)")
_transform = _register("transform", f"{_COMMON}) -> Tensor")
_transform_sums = _register("transform_sums", f"Tensor dy, {_COMMON}) -> (Tensor, Tensor)")
_transform_grad = _register("transform_grad", f"Tensor dy, {_COMMON}, Tensor a, Tensor b, Tensor c) -> Tensor[]")


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.moments`."""
    mean, var = _moments(x)
    return mean, var


def transform(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: Activation | None
) -> Tensor:
    """See :func:`steadynorm.ops.reference.transform`."""
    y: Tensor = _transform(x, center, scale, shift, residual, activation)
    return y


def transform_sums(
    dy: Tensor,
    x: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.transform_sums`."""
    sum_dy, sum_dy_xc = _transform_sums(dy, x, center, scale, shift, residual, activation)
    return sum_dy, sum_dy_xc


def transform_grad(
    dy: Tensor,
    x: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`steadynorm.ops.reference.transform_grad`."""
    dx, *d_residual = _transform_grad(dy, x, center, scale, shift, residual, activation, a, b, c)
    return dx, d_residual[0] if d_residual else None


def kernels_for(x: Tensor, *others: Tensor | None) -> ModuleType:
    """Return the module whose four functions to call: this one, or an implementation.

    It is an implementation if only autograd's backward uses the result: torch's dispatcher takes as long as a kernel
    for a tensor that is not large.
    """
    if torch.is_grad_enabled() or not unobserved(x):
        return sys.modules[__name__]
    return implementation(choose_backend(x, *others))


def snapshot(x: Tensor) -> Tensor:
    """Copy a tensor that changes between the forward and the backward, without gradient.

    A compiler that splits the two saves as little as it can and recomputes the rest, even a copy, from the tensor's
    later value (seen with torch 2.13). It does not recompute an operation of our own.
    """
    if not torch.compiler.is_compiling() or is_recorded():
        return x.detach().clone()
    copied: Tensor = torch.ops.steadynorm.snapshot.default(x.detach())
    return copied


_define("snapshot", "Tensor x) -> Tensor", torch.clone)


@_fake("snapshot")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def unless_recomputing(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """Copy the new tensors; within a backward, copy the old ones instead, of the same shapes.

    A compiled graph runs for a batch and again for its recomputation, so it must check at each run.
    """
    copied: list[Tensor] = torch.ops.steadynorm.unless_recomputing.default(new, old)
    return copied


def _unless_recomputing(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    return [each.clone() for each in (new if torch._C._current_graph_task_id() == -1 else old)]


_not_recorded = [torch.Tag.cudagraph_unsafe] if hasattr(torch.Tag, "cudagraph_unsafe") else []  # since torch 2.9
_define("unless_recomputing", "Tensor[] new, Tensor[] old) -> Tensor[]", _unless_recomputing, *_not_recorded)


@_fake("unless_recomputing")
def _(new: list[Tensor], _: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(each) for each in new]


def _statistics_like(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


@_fake("moments")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _statistics_like(x)


@_fake("transform")
def _(x: Tensor, *_: Any) -> Tensor:  # noqa: ANN401 (as the signature says)
    return torch.empty_like(x)


@_fake("transform_sums")
def _(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 (as above)
    return _statistics_like(x)


@_fake("transform_grad")
def _(
    dy: Tensor,
    x: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    *_: Any,  # noqa: ANN401 (as above)
) -> list[Tensor]:
    dx = torch.empty_like(x)
    return [dx] if residual is None else [dx, torch.empty_like(x, dtype=residual.dtype)]


def _save_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401 (torch's)
    ctx.save_for_backward(inputs[0], output[0])


def _moments_backward(ctx: Any, d_mean: Tensor, d_var: Tensor) -> Tensor:  # noqa: ANN401 (as above)
    """Compute dx = d_mean/n + 2·d_var/n·(x − mean) as a transform."""
    x, mean = ctx.saved_tensors
    count = x.numel() // x.shape[1]
    return transform(x, mean, 2 * d_var / count, d_mean / count, None, None)


def _save_transform(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401 (as above)
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _transform_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
    x, center, scale, shift, residual = ctx.saved_tensors
    common = (dy, x, center, scale, shift, residual, ctx.activation)
    sum_dy, sum_dy_xc = transform_sums(*common)
    nothing = torch.zeros_like(scale)
    dx, d_residual = transform_grad(*common, scale, nothing, nothing)
    return dx, -scale * sum_dy, sum_dy_xc, sum_dy, d_residual, None


def _refuse(ctx: Any, *_: Any) -> None:  # noqa: ANN401 (as above)
    raise NotImplementedError(
        "steadynorm.ops: transform_sums and transform_grad must be the last derivative that is taken. "
        "A layer can be differentiated twice; its kernels by themselves only once."
    )


_differentiate("moments", _moments_backward, _save_moments)
_differentiate("transform", _transform_backward, _save_transform)
_differentiate("transform_sums", _refuse)
_differentiate("transform_grad", _refuse)
