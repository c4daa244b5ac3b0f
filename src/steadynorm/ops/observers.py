"""Detect who observes the computation besides autograd: transforms, compilers, tracers, modes, recomputation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steadynorm.statistics.ranks import is_mapped_backward

__all__ = ["is_recomputing", "is_recorded", "is_transformed", "unobserved"]

# torch 2.6 has only one flag, and sets it for a non-strict export.
_EXPORTING = "_is_exporting_flag" if hasattr(torch.compiler, "_is_exporting_flag") else "_is_compiling_flag"


def is_transformed(gradient: Tensor | None = None) -> bool:
    """Whether a transform of torch.func, torch.jit.trace or forward-mode differentiation is active.

    Kernels see the values of a tensor, not what a transform adds to it. An autograd function hides from a transform
    what its backward needs, and TorchScript cannot hold one. So only tensor operations run there.

    Args:
        gradient: in a backward, the incoming gradient: ``is_grads_batched`` maps over it by its own vmap.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or (gradient is not None and is_mapped_backward(gradient))
    )


def is_recorded() -> bool:
    """Whether torch.export or torch.jit.trace records a graph, for other sizes and for use without this package.

    In such a graph a number that depends on a size must be a tensor, and no operation may be one of ours.
    """
    return getattr(torch.compiler, _EXPORTING) or torch._C._get_tracing_state() is not None


def is_recomputing() -> bool:
    """Whether this forward runs within a backward, as in both modes of torch.utils.checkpoint.

    False in a compiled graph, which may run for both.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def unobserved(x: Tensor) -> bool:
    """Whether only autograd uses the result: no compiler, transform, tracer, mode or subclass of Tensor."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and not is_transformed()
    )
