"""The one door to the kernels: which implementation runs, and why.

The four are registered with torch under ``torch.ops.steadynorm``, so that compilers, exporters and function
transforms see four operations and none of their insides. The choice among the implementations is made when one runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from steadynorm.ops import reference
from steadynorm.ops._compilers import compiled_kernels, count_compilations, is_usable, why_unusable
from steadynorm.ops.reference import Activation

__all__ = [
    "Backend",
    "Choice",
    "backend",
    "choose_backend",
    "compiled_self_tuned",
    "count_compilations",
    "explain_backend",
    "is_recorded",
    "kernels_for",
    "moments",
    "records_torchs_own",
    "smallest_for_numba",
    "snapshot",
    "transform",
    "transform_grad",
    "transform_sums",
    "unless_recomputing",
    "unobserved",
    "why_unusable",
]

Backend = Literal["reference", "numba", "triton", "torch"]
# Values below which torch's own batch norm and ReLU, forward and backward, take less time than ours on a CPU, where a
# call costs a fixed time more. Measured with cold caches: docs/results/bench_kernels_cpu_20261122.json.
SMALL_PLANES = 1 << 17
SMALL_ROWS = 1 << 20
SMALL_HALF_PLANES = 1 << 18
SMALL_HALF_ROWS = 3 << 16
BARE = 2
"""How many times as many it takes where nothing is fused into the norm, and torch reads memory less often."""
SMALL_WITHOUT_TORCH = 1 << 13
"""Values from which they are the faster ones where torch has no function of its own."""
SMALL_ON_GPU = 1 << 20
"""Likewise on a GPU; not measured."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which implementation runs, and why."""

    backend: Backend
    reason: str


_SMALL = Choice(backend="torch", reason="small: starting our kernels would cost more than they save")
_NUMBA = Choice(backend="numba", reason="a CPU tensor that is not small, in a dtype that the compiled kernels take")
_TRITON = Choice(backend="triton", reason="a GPU tensor that is not small, in a dtype that the Triton kernels take")
_NO_TRITON = Choice(backend="torch", reason="a GPU tensor, and Triton is not installed")
_OTHER_DEVICE = Choice(backend="torch", reason="neither a CPU nor a CUDA tensor")
_AMBIGUOUS = Choice(
    backend="reference", reason="torch's own gradient may be wrong where a dimension of size 1 hides the memory format"
)
_wanted: Backend | Literal["auto"] = "auto"


@contextmanager
def backend(name: Backend | Literal["auto"]) -> Iterator[None]:
    """Use one implementation for everything within, in all threads.

    Args:
        name: ``auto`` chooses for each tensor, see :func:`explain_backend`; ``reference`` the formulas in plain
            tensor operations; ``numba`` compiled for the CPU; ``triton`` for GPUs; ``torch`` torch's own batch norm
            (what torch has no kernel for runs the reference).

    Raises:
        ValueError: there is no such implementation.
        RuntimeError: it is not installed, or cannot be loaded. A tensor that it cannot take raises ValueError later.

    >>> with backend("reference"):
    ...     choose_backend(torch.randn(2, 3))
    'reference'
    """
    global _wanted
    if name != "auto" and name not in get_args(Backend):
        raise ValueError(f"backend: must be auto, {', '.join(get_args(Backend))}, got {name!r}.")
    if (name == "numba" or name == "triton") and (reason := why_unusable(name)) is not None:
        raise RuntimeError(f"backend: {name} must be installed and usable, but {reason}. Run: pip install {name}")
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before


def explain_backend(x: Tensor, *others: Tensor | None, fused: bool = True, torchs_own: bool = True) -> Choice:
    """Say which implementation takes such tensors, and why.

    By device, dtype, memory layout and size, and by whether there is something to fuse. Never one that is slower than
    torch's own: small tensors, float64 and tensors whose dtypes differ are torch's.

    Args:
        x: the input of a kernel.
        others: what else it reads of that shape: gradient, residual.
        fused: whether an activation or a residual is computed in the same pass.
        torchs_own: whether torch has a function for it, as it has for batch norm.

    Raises:
        ValueError: :func:`backend` asks for an implementation that cannot take them.
    """
    if _wanted != "auto":
        return _as_asked(_wanted, x, others)
    if x.is_cpu:
        if x.numel() < (smallest_for_numba(x, fused=fused) if torchs_own else SMALL_WITHOUT_TORCH):
            return _torch_for(x, _SMALL)
        if not is_usable("numba"):
            return _torch_for(x, Choice(backend="torch", reason=f"{why_unusable('numba')}"))
        obstacle = compiled_kernels("numba").obstacle(x, *others)
        return _NUMBA if obstacle is None else _torch_for(x, Choice(backend="torch", reason=obstacle))
    if not x.is_cuda:
        return _OTHER_DEVICE
    if x.numel() < SMALL_ON_GPU:
        return _SMALL
    if find_spec("triton") is None:
        return _NO_TRITON
    if not is_usable("triton"):
        return Choice(backend="torch", reason=f"{why_unusable('triton')}")
    obstacle = compiled_kernels("triton").obstacle(x, *others)
    return _TRITON if obstacle is None else Choice(backend="torch", reason=obstacle)


def kernels_for(x: Tensor, *others: Tensor | None) -> ModuleType:
    """Give the module whose four functions to call: this one, or an implementation itself.

    An implementation where nobody looks on (no autograd, compiler, transform, tracer or mode): torch's dispatcher
    takes as long as a kernel does for a tensor that is not large.
    """
    if torch.is_grad_enabled() or not unobserved(x):
        return sys.modules[__name__]
    return _module(choose_backend(x, *others))


def unobserved(x: Tensor) -> bool:
    """Whether nobody but autograd looks on: no compiler, transform, tracer, mode or subclass of Tensor."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


# torch 2.6 has one flag alone, and sets it for an export that is not strict.
_EXPORTING = "_is_exporting_flag" if hasattr(torch.compiler, "_is_exporting_flag") else "_is_compiling_flag"


def is_recorded() -> bool:
    """Whether torch.export or torch.jit.trace writes down what runs: for other sizes, and for use without this package.

    A number that depends on a size must be a tensor there, and no operation may be one of ours.
    """
    return getattr(torch.compiler, _EXPORTING) or torch._C._get_tracing_state() is not None


def records_torchs_own(x: Tensor) -> bool:
    """Whether to leave a record to torch's own batch norm, which its readers recognise, whatever the size.

    Not where :func:`backend` asks for another implementation, which is the formulas then: none of ours can be recorded.
    """
    return is_recorded() and (_wanted == "torch" or (_wanted == "auto" and _is_clear(x)))


def smallest_for_numba(x: Tensor, *, fused: bool) -> int:
    """Count the values from which the compiled kernels are the faster ones, for such a dtype and memory layout."""
    rows = x.dim() > 2 and x.stride(1) == 1 and not x.is_contiguous()
    if x.dtype == torch.float32:
        smallest = SMALL_ROWS if rows else SMALL_PLANES
    else:
        smallest = SMALL_HALF_ROWS if rows else SMALL_HALF_PLANES
    return smallest if fused else BARE * smallest


def choose_backend(x: Tensor, *others: Tensor | None, fused: bool = True, torchs_own: bool = True) -> Backend:
    """Choose the implementation, see :func:`explain_backend`."""
    if torchs_own and _wanted == "auto" and x.is_cpu and x.numel() < SMALL_PLANES and x.is_contiguous():
        return "torch"  # the same answer, at once: beside so small a tensor the question takes time
    return explain_backend(x, *others, fused=fused, torchs_own=torchs_own).backend


def _as_asked(wanted: Backend, x: Tensor, others: tuple[Tensor | None, ...]) -> Choice:
    obstacle = _module(wanted).obstacle(x, *others) if wanted in ("numba", "triton") else None
    if obstacle is not None:
        raise ValueError(
            f"backend: {wanted} must be able to take the tensor, but {obstacle} ({x.dtype} {tuple(x.shape)} on "
            f'{x.device}). Use backend("auto").'
        )
    return Choice(backend=wanted, reason=f'backend("{wanted}") asks for it')


def _torch_for(x: Tensor, choice: Choice) -> Choice:
    """Give torch's own kernel, except where it is not to be trusted."""
    return choice if _is_clear(x) else _AMBIGUOUS


def _is_clear(x: Tensor) -> bool:
    return 1 not in x.shape[1:] or x.is_contiguous()


def _module(name: Backend) -> ModuleType:
    return compiled_kernels(name) if name == "numba" or name == "triton" else reference


def compiled_self_tuned() -> ModuleType | None:
    """Give the compiled form of self-tuned running statistics; None where compiled code is not to run, or cannot."""
    if _wanted not in ("auto", "numba") or not is_usable("numba"):
        return None
    from steadynorm.ops import _numba_self_tuned

    return _numba_self_tuned


_COMMON = "Tensor x, Tensor center, Tensor scale, Tensor shift, Tensor? residual, str? activation"
_NAMES = ("moments", "transform", "transform_sums", "transform_grad", "snapshot", "unless_recomputing")
# A process can hold several copies of this module: one that was reloaded, or imported anew beside models of the first.
# The first registers with torch, and what it registers calls the newest. Its library must live as long: a library takes
# its operations with it, and a reload binds this name anew.
_REGISTERED = {name for name in _NAMES if hasattr(torch.ops.steadynorm, name)}
_library: torch.library.Library = (
    globals().get("_library") or torch.library.Library("steadynorm", "FRAGMENT")  # type: ignore[no-untyped-call]
)
_here = sys.modules[__name__]


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
        newest = sys.modules.get(__name__, _here)
        others = () if name == "moments" else (*arguments[:at], arguments[at + 4])
        result = getattr(newest._module(newest.choose_backend(arguments[at], *others)), name)(*arguments)
        # A list holds what may be absent.
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


def snapshot(x: Tensor) -> Tensor:
    """Copy a tensor that changes between the forward and the backward, without gradient.

    A compiler that splits the two saves as little as it can and computes the rest anew, a copy too: from the tensor
    as it is by then (seen with torch 2.13). An operation of our own it does not compute twice.
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
    """Copy the new tensors; where this runs within a backward, the old ones, of the same shapes.

    A compiled graph runs for a batch and again for its recomputation, so it must ask anew each time.
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
    """Give dx = d_mean/n + 2·d_var/n·(x − mean), which is a transform."""
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
