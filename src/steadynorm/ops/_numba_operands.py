"""Checks of the numbers that the fused kernels read and write in place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from steadynorm.ops._numba_rules import Rule, reads_running, saved_rows
from steadynorm.ops._operands import check_numbers

__all__ = ["check_rule", "check_stored"]


def check_rule(
    where: str, x: Tensor, rule: Rule, chunks: int, saved: Tensor, parameters: Mapping[str, Tensor | None]
) -> None:
    """Raise ValueError unless the chunks, the numbers per channel and the saved rows fit x and the rule."""
    samples, channels = x.shape[:2]
    if not 1 <= chunks <= samples:
        raise ValueError(f"steadynorm.ops.{where}: chunks must be between 1 and the {samples} samples, got {chunks}.")
    if chunks > 1 and not _is_sample_by_sample(x):
        raise _in_pieces(where, x)
    check_numbers(where, (channels,), parameters)
    check_numbers(where, (saved_rows(rule, chunks), channels), {"saved": saved})


def check_stored(
    x: Tensor, rule: Rule, chunks: int, running: Mapping[str, Tensor | None], momentum: float, noise: Tensor | None
) -> None:
    """Raise ValueError unless running statistics, momentum and noise fit x and the rule."""
    check_numbers("normalize", (x.shape[1],), running)
    absent = [name for name, tensor in running.items() if tensor is None]
    if len(absent) == 1 or (absent and reads_running(rule)):
        raise ValueError(
            f"steadynorm.ops.normalize: running_mean and running_var must both be given, or for batch norm neither, "
            f"got {type(rule).__name__} without {' and '.join(absent)}."
        )
    if momentum and x.numel() == x.shape[1]:
        raise ValueError(f"steadynorm.ops.normalize: momentum must be 0 for one value per channel, got {momentum}.")
    if noise is not None:
        check_numbers("normalize", noise.shape if noise.numel() == 1 else (1,), {"noise": noise})
        if len(x) < 2 or not _is_sample_by_sample(x):
            raise _in_pieces("normalize", x)


def _is_sample_by_sample(x: Tensor) -> bool:
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def _in_pieces(where: str, x: Tensor) -> ValueError:
    return ValueError(
        f"steadynorm.ops.{where}: samples must be contiguous in memory for chunks or noise, and two or more for "
        f"noise, got shape {tuple(x.shape)} with strides {x.stride()}. Pass a contiguous or channels-last input."
    )
