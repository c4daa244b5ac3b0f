"""The small network of sigmoids, and the inputs of its last hidden layer."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from steadynorm.layers import BatchNorm1d
from steadynorm.reporting.failure import check_known

__all__ = ["ARMS", "PERCENTILES", "build_network", "check_arms", "inputs_in_training", "percentiles", "shifts"]

PERCENTILES = {"p15": 0.15, "p50": 0.50, "p85": 0.85}
"""Percentiles in figure 1 of Ioffe & Szegedy 2015 (arXiv 1502.03167), by their names in the tables."""

ARMS: dict[str, Callable[[int], nn.Module] | None] = {
    "batch_norm": BatchNorm1d,
    "none": None,
    "self_tuned_batch_norm": functools.partial(BatchNorm1d, running="self_tuned"),
    "torch_batch_norm": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
}
"""Number of units -> module between a hidden layer's linear map and its sigmoids; None for none."""


def check_arms(arms: Sequence[str]) -> None:
    """Refuse a normalization that this network does not have.

    Raises:
        UserError: the network does not have an arm.
    """
    check_known("--arms", arms, ARMS, what="normalization here")


def build_network(
    arm: str, *, inputs: int, widths: Sequence[int], classes: int, std: float, seed: int
) -> nn.Sequential:
    """Build linear maps with sigmoids between them, and draw their weights from N(0, std²); biases start at zero.

    Two arms with the same seed start from the same weights. The last two modules are the last hidden layer's sigmoids
    and the classifier; a map before a normalization has no bias, because the normalization adds one.

    Args:
        arm: one of :data:`ARMS`.
        inputs: number of values in an image.
        widths: number of sigmoids in each hidden layer.
        classes: number of outputs.
        std: standard deviation of the weights.
        seed: decides the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    norm = ARMS[arm]
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise((inputs, *widths)):
        layers.append(nn.Linear(before, width, bias=norm is None))
        layers += [nn.Sigmoid()] if norm is None else [norm(width), nn.Sigmoid()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], classes))
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def inputs_in_training(network: nn.Sequential, x: Tensor, *, batch_size: int) -> Tensor:
    """Return the inputs of the last hidden layer's sigmoids in training mode; the network stays unchanged.

    Args:
        network: result of :func:`build_network`.
        x: shape (N, inputs); used in whole batches in order, without the remainder.
        batch_size: samples normalized together; all of them if there are fewer.

    Returns:
        shape (samples in whole batches, units).
    """
    twin = copy.deepcopy(network[:-2]).train()
    size = min(batch_size, len(x))
    batches = x[: len(x) // size * size].view(-1, size, x.shape[1])
    return torch.cat([twin(batch) for batch in batches])


def percentiles(values: Tensor) -> Tensor:
    """Return :data:`PERCENTILES` of (N, units) over N, interpolated linearly; shape (3, units)."""
    return torch.quantile(values, values.new_tensor(list(PERCENTILES.values())), dim=0)


def shifts(history: Tensor) -> dict[str, Tensor]:
    """Measure how far the percentiles of the inputs shift during training.

    Args:
        history: shape (measurements, 3, units): the 15th, 50th and 85th percentile at each measurement.

    Returns:
        of shape (units,), infinite or NaN where a width is zero:

        - ``drift``: max over t of |p50(t) − p50(end)|, over the final width, p85(end) − p15(end);
        - ``path``: the sum over t of |p50(t) − p50(t − 1)|, over the same;
        - ``width_ratio``: the largest over the smallest p85(t) − p15(t).
    """
    middle, width = history[:, 1], history[:, 2] - history[:, 0]
    return {
        "drift": (middle - middle[-1]).abs().amax(0) / width[-1],
        "path": middle.diff(dim=0).abs().sum(0) / width[-1],
        "width_ratio": width.amax(0) / width.amin(0),
    }
