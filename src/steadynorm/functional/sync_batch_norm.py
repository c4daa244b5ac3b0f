"""Batch normalization over the batches of several processes, as a function."""

from __future__ import annotations

from torch import Tensor

from steadynorm.functional.checks import check_training, normalize_nothing
from steadynorm.ops.reference import Activation
from steadynorm.rules import BatchNormRule, normalize
from steadynorm.statistics import Moments
from steadynorm.statistics.ranks import Ranks

__all__ = ["sync_batch_norm"]


def sync_batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    ranks: Ranks,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "sync_batch_norm",
) -> tuple[Tensor, Moments]:
    r"""Batch-normalize this rank's batch by the batch statistics of all ranks together.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right) \qquad \mathrm{mean}, \mathrm{var}\ \text{over all ranks}
    $$

    For training. The forward and the backward each cost one collective, in which every rank must take part, also with
    an empty batch. The gradient of input is that of the sum of all ranks' losses. The gradients of weight and bias are
    those of this rank's input; DistributedDataParallel averages them.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`; N may differ between ranks and may be 0.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance; positive.
        ranks: from :func:`steadynorm.statistics.ranks.ranks_of`.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm, and the moments of all ranks' input,
            without gradient.

    Raises:
        RuntimeError: a rank did not take part within the process group's timeout; otherwise as :func:`batch_norm`.
        ValueError: as :func:`batch_norm` in training, except that one value per channel gives y = bias.

    Source: conventions of torch.nn.SyncBatchNorm; Chan, Golub & LeVeque 1983 for merging moments.
    """
    check_training(_caller, input, residual, activation, eps, (None, None, weight, bias), fewest=1)
    if input.shape[1] == 0:  # the ranks have nothing to exchange
        return normalize_nothing(input, weight, bias, residual)
    return normalize(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation, ranks=ranks)
