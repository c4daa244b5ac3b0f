"""Dispatch to the kernels: which path a batch takes, which implementation runs, and why.

A training batch takes one of three paths: ``torch``, torch's own function; ``fused``, one compiled call each way; or
``composed``, the rule between kernels. An implementation of the kernels is a backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from steadynorm.ops import reference
from steadynorm.ops._compilers import compiled_kernels, count_compilations, is_usable, why_unusable
from steadynorm.ops.observers import is_recorded, is_transformed, unobserved
from steadynorm.ops.reference import Activation

__all__ = [
    "Backend",
    "Choice",
    "Path",
    "backend",
    "choose_backend",
    "choose_path",
    "compiled_kernels",
    "compiled_rule",
    "compiled_self_tuned",
    "count_compilations",
    "explain_backend",
    "implementation",
    "is_fusable",
    "smallest_for_numba",
    "why_unusable",
]

Backend = Literal["reference", "numba", "triton", "torch"]
"""Name of an implementation of the kernels; see :func:`steadynorm.backend`."""
Path = Literal["torch", "fused", "composed"]
# Values below which torch's own batch norm and ReLU, forward and backward, take less time than ours on a CPU, where a
# call costs a fixed time more. Measured with cold caches: docs/results/bench_kernels_cpu_20261122.json.
SMALL_PLANES = 1 << 17
SMALL_ROWS = 1 << 20
SMALL_HALF_PLANES = 1 << 18
SMALL_HALF_ROWS = 3 << 16
BARE = 2
"""Factor on these sizes if nothing is fused into the norm: torch then reads memory less often."""
SMALL_WITHOUT_TORCH = 1 << 13
"""Values from which our kernels are faster if torch has no function of its own."""
SMALL_ON_GPU = 1 << 20
"""Values from which our kernels run on a GPU; not measured."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A chosen implementation and the reason.

    Args:
        backend: name of the implementation.
        reason: why it was chosen, in words.
    """

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
    """Context that selects the implementation of the layers, in all threads.

    Args:
        name: ``"auto"`` chooses for each tensor, see :func:`explain_backend`. ``"reference"`` uses plain tensor
            operations, ``"numba"`` kernels compiled for the CPU, ``"triton"`` kernels for GPUs, ``"torch"`` torch's own
            batch norm (and the reference where torch has no kernel).

    Raises:
        ValueError: an unknown name. A tensor that the implementation cannot take raises ValueError later.
        RuntimeError: the implementation is not installed or cannot be loaded.

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
    """Return which implementation takes such tensors, and why.

    The choice depends on device, dtype, memory layout, size and on whether something is fused. It is never one that is
    slower than torch: small tensors, float64 and mixed dtypes are left to torch.

    Args:
        x: the input of a kernel.
        others: other inputs of that shape: gradient, residual.
        fused: whether an activation or a residual is computed in the same pass.
        torchs_own: whether torch has a function for the operation, as it has for batch norm.

    Returns:
        the Choice, with ``backend`` and ``reason``.

    Raises:
        ValueError: :func:`backend` selects an implementation that cannot take them.

    >>> explain_backend(torch.randn(2, 3)).backend
    'torch'
    """
    if _wanted != "auto":
        return _as_asked(_wanted, x, others)
    if x.is_cpu:
        if x.numel() < (smallest_for_numba(x, fused=fused) if torchs_own else SMALL_WITHOUT_TORCH):
            return _torch_for(x, _SMALL)
        if not is_usable("numba"):
            return _torch_for(x, Choice(backend="torch", reason=f"{why_unusable('numba')}"))
        unsupported_reason = compiled_kernels("numba").unsupported_reason(x, *others)
        return (
            _NUMBA if unsupported_reason is None else _torch_for(x, Choice(backend="torch", reason=unsupported_reason))
        )
    if not x.is_cuda:
        return _OTHER_DEVICE
    if x.numel() < SMALL_ON_GPU:
        return _SMALL
    if find_spec("triton") is None:
        return _NO_TRITON
    if not is_usable("triton"):
        return Choice(backend="torch", reason=f"{why_unusable('triton')}")
    unsupported_reason = compiled_kernels("triton").unsupported_reason(x, *others)
    return _TRITON if unsupported_reason is None else Choice(backend="torch", reason=unsupported_reason)


def choose_path(
    x: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *own: Tensor | None,
    torchs_own: bool = True,
) -> Path:
    """Choose how to train: by torch's own function, by one compiled call each way, or by the rule between kernels.

    Compiled or transformed functions take the rule between kernels at any size: compilers see our operations,
    transforms see torch's.

    Args:
        own: further parameters of the rule. The others are those of :func:`steadynorm.functional.batch_norm`.
        torchs_own: whether torch has a function for the operation, which is faster for small tensors.
    """
    plain = unobserved(x)
    recorded = not plain and torchs_own and _records_torchs_own(x)
    if not plain and not recorded and (torch.compiler.is_compiling() or is_transformed()):
        return "composed"
    dtype = x.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    per_channel = (running_mean, running_var, weight, bias, *own)
    for tensor in per_channel:
        if tensor is not None and tensor.dtype != wide:
            return "composed"
    if (running_mean is None) != (running_var is None) or (residual is not None and residual.dtype != dtype):
        return "composed"
    if recorded:
        return "torch"
    with_more = activation is not None or residual is not None
    chosen = choose_backend(x, residual, fused=with_more, torchs_own=torchs_own)
    if chosen == "numba" and plain and is_fusable(*per_channel):
        return "fused"
    return "torch" if chosen == "torch" else "composed"


def is_fusable(*per_channel: Tensor | None) -> bool:
    """Whether the compiled call takes the float32 tensors without a copy: plain, contiguous, on the CPU."""
    for tensor in per_channel:
        if tensor is not None and not (
            tensor.is_cpu and tensor.is_contiguous() and type(tensor) in (Tensor, torch.nn.Parameter)
        ):
            return False
    return True


def compiled_rule(name: str) -> ModuleType:
    """Return the compiled form of ``rules/NAME.py``; call it only if :func:`choose_path` returns ``fused``."""
    return import_module(f"steadynorm.ops._numba_{name}")


def _records_torchs_own(x: Tensor) -> bool:
    """Whether a recorded graph uses torch's own batch norm, which its readers recognise, at any size.

    If :func:`backend` asks for another one, the graph holds the formulas: none of our kernels can be recorded.
    """
    return is_recorded() and (_wanted == "torch" or (_wanted == "auto" and _is_clear(x)))


def smallest_for_numba(x: Tensor, *, fused: bool) -> int:
    """Return the number of values from which the compiled kernels are faster, for the dtype and layout of x."""
    rows = x.dim() > 2 and x.stride(1) == 1 and not x.is_contiguous()
    if x.dtype == torch.float32:
        smallest = SMALL_ROWS if rows else SMALL_PLANES
    else:
        smallest = SMALL_HALF_ROWS if rows else SMALL_HALF_PLANES
    return smallest if fused else BARE * smallest


def choose_backend(x: Tensor, *others: Tensor | None, fused: bool = True, torchs_own: bool = True) -> Backend:
    """Choose the implementation, see :func:`explain_backend`."""
    if torchs_own and _wanted == "auto" and x.is_cpu and x.numel() < SMALL_PLANES and x.is_contiguous():
        return "torch"  # the answer of explain_backend, without its cost
    return explain_backend(x, *others, fused=fused, torchs_own=torchs_own).backend


def _as_asked(wanted: Backend, x: Tensor, others: tuple[Tensor | None, ...]) -> Choice:
    unsupported_reason = (
        implementation(wanted).unsupported_reason(x, *others) if wanted in ("numba", "triton") else None
    )
    if unsupported_reason is not None:
        raise ValueError(
            f"backend: {wanted} must be able to take the tensor, but {unsupported_reason} "
            f'({x.dtype} {tuple(x.shape)} on {x.device}). Use backend("auto").'
        )
    return Choice(backend=wanted, reason=f'backend("{wanted}") asks for it')


def _torch_for(x: Tensor, choice: Choice) -> Choice:
    """Return torch's own kernel, or the reference if torch's gradient may be wrong."""
    return choice if _is_clear(x) else _AMBIGUOUS


def _is_clear(x: Tensor) -> bool:
    return 1 not in x.shape[1:] or x.is_contiguous()


def implementation(name: Backend) -> ModuleType:
    """Return the module with the four kernels of a backend."""
    return compiled_kernels(name) if name == "numba" or name == "triton" else reference


def compiled_self_tuned() -> ModuleType | None:
    """Return the compiled self-tuned running statistics; None if compiled code is not selected or not usable."""
    if _wanted not in ("auto", "numba") or not is_usable("numba"):
        return None
    from steadynorm.ops import _numba_self_tuned

    return _numba_self_tuned
