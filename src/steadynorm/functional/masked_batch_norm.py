"""Batch normalization of padded sequences as a function; padding is neither counted nor changed."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.functional.checks import check_one_size, check_training
from steadynorm.ops._layout import laid_out
from steadynorm.ops.observers import is_transformed
from steadynorm.ops.reference import Activation
from steadynorm.rules import BatchNormRule, activated
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import channel_sum, per_channel, statistics_dtype
from steadynorm.statistics.ranks import Ranks, pool_over

__all__ = ["masked_batch_norm", "valid_positions"]


def valid_positions(
    input: Tensor, mask: Tensor | None, lengths: Tensor | None, *, _caller: str = "masked_batch_norm"
) -> Tensor:
    """Turn a mask or lengths into a mask that broadcasts to the input.

    Args:
        input: shape (N, C, L) or (N, C).
        mask: boolean, shape (N, L) or (N,); True at valid positions.
        lengths: instead of mask, integers of shape (N,): positions below lengths[i] of sample i are valid. Values are
            not checked: 0 or less means none, L or more means all.

    Returns:
        boolean, shape (N, 1, L) or (N, 1).

    Raises:
        ValueError: neither or both are given; a wrong shape or dtype; a nested or sparse tensor.
    """
    for what, tensor in (("input", input), ("mask", mask), ("lengths", lengths)):
        if tensor is not None:
            check_one_size(_caller, what, tensor)
    samples = (input.shape[0], *input.shape[2:])
    if mask is not None and lengths is None:
        if mask.dtype != torch.bool or mask.shape != samples:
            raise ValueError(
                f"{_caller}: mask must be boolean, of shape {samples} for input {tuple(input.shape)}, got "
                f"{mask.dtype} {tuple(mask.shape)}."
            )
        return mask.unsqueeze(1)
    if lengths is None or mask is not None:
        found = "both" if lengths is not None else "neither"
        raise ValueError(f"{_caller}: either mask or lengths must be given, got {found}.")
    if input.dim() != 3 or lengths.shape != samples[:1] or lengths.is_floating_point():
        raise ValueError(
            f"{_caller}: lengths must be integers of shape (N,) beside input (N, C, L), got {lengths.dtype} "
            f"{tuple(lengths.shape)} beside {tuple(input.shape)}."
        )
    positions = torch.arange(input.shape[2], device=input.device)
    return (positions < lengths.to(input.device).unsqueeze(1)).unsqueeze(1)


def masked_batch_norm(
    input: Tensor,
    valid: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    ranks: Ranks | None = None,
    _caller: str = "masked_batch_norm",
) -> tuple[Tensor, Moments]:
    r"""Batch-normalize the valid positions of a training batch, and return the others unchanged.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right) \text{ where valid,} \qquad y = x \text{ elsewhere}
    $$

    ``mean`` and ``var`` are the batch statistics of the valid positions. The value at any other position, NaN included,
    affects only its own y.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        valid: boolean, broadcasts to input along the channels; see :func:`valid_positions`. Never read on the host.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance; positive.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.
        ranks: ranks whose batches are measured as one batch, see :func:`sync_batch_norm`; None uses this process alone.

    Returns:
        y in the shape and dtype of input, and the moments of the valid positions, without gradient; their count is a
            tensor.

    Raises:
        ValueError: as :func:`batch_norm` in training, except that one valid value per channel gives y = bias.
        RuntimeError: as :func:`batch_norm`.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1, over the valid positions.
    """
    check_training(_caller, input, residual, activation, eps, (None, None, weight, bias), fewest=1)
    input = input if is_transformed() else laid_out(input)
    xc, moments = _centred(input, valid, ranks)
    affine = BatchNormRule(eps).forward(moments, weight, bias)
    pre = xc * per_channel(affine.scale, xc) + per_channel(affine.shift, xc)
    if residual is not None:
        pre = pre + torch.where(valid, residual, 0)
    y = torch.where(valid, activated(pre, activation).to(input.dtype), input)
    return y, Moments(mean=moments.mean.detach(), var=moments.var.detach(), count=moments.count)


def _centred(x: Tensor, valid: Tensor, ranks: Ranks | None) -> tuple[Tensor, Moments]:
    """Measure the valid positions in two passes; return x − mean, with 0 at other positions, and the moments.

    m = Σ x / n        δ = Σ (x − m) / n        mean = m + δ        var = Σ (x − m)² / n − δ²
    """
    x = x.to(statistics_dtype(x.dtype))
    count = valid.sum(dtype=x.dtype)
    filled = count.clamp(min=1)
    # m only centres the second pass: neither value nor gradient depends on it, so it needs no gradient.
    m = channel_sum(torch.where(valid, x.detach(), 0)) / filled
    rest = torch.where(valid, x - per_channel(m, x), 0)
    correction = channel_sum(rest) / filled
    var = (channel_sum(rest.square()) / filled - correction.square()).clamp(min=0)
    # An infinite mean has no correction; torch's estimate is infinite too.
    mean = torch.where(correction.isnan(), m, m + correction)
    moments = Moments(mean=mean, var=var, count=count)
    if ranks is not None:
        moments = pool_over(ranks, moments)
    return torch.where(valid, rest - per_channel(moments.mean - m, x), 0), moments
