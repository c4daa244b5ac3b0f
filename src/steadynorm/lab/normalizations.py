"""The arms: every normalization that an experiment can put into a network, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from steadynorm.lab.several_decays import SeveralDecays
from steadynorm.layers import (
    BatchNorm2d,
    BatchRenorm2d,
    FrozenBatchNorm2d,
    GatedBatchNorm2d,
    GhostBatchNorm2d,
    NormAddActivation,
    SyncBatchNorm,
)
from steadynorm.reporting.failure import check_known

__all__ = ["NORMALIZATIONS", "Normalization", "find_normalization"]

USUAL_BATCHES = 7_800  # of compare's 20 epochs of CIFAR-10
CHANNELS_PER_GROUP = 16  # group norm's setting with a fixed group size, Wu & He 2018 (arXiv 1803.08494), table 3


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How an arm normalizes."""

    build: Callable[..., nn.Module]
    """Number of channels -> module computing relu(norm(x) + residual) as ``module(x, residual=None)``.

    Layers that have to do with it are told by ``update_every`` how many batches a step takes, behind which running
    statistics may move, and by ``batches`` how many there are in the whole training.
    """
    summary: str
    """One line for ``--help`` and reports."""
    convolution_bias: bool = False
    """Whether the convolution before it needs a bias, because the arm adds none itself."""


def _ours(layer: type[nn.Module], **arguments: Any) -> Callable[..., nn.Module]:  # noqa: ANN401 (the layer's)
    def build(channels: int, *, update_every: int = 1, **_: int) -> nn.Module:
        return layer(channels, activation="relu", update_every=update_every, **arguments)

    return build


# Layers that train by their running statistics let them follow every batch: they must be of the weights at hand. Those
# of the step before did not do (cnn, 64 batches of 2 to a step, rate 0.02, one pass over CIFAR-10): renorm 10 to 16 %,
# gated 33 to 38 %, batch norm 53 %.


def _gated_batch_norm(channels: int, **_: int) -> nn.Module:
    return GatedBatchNorm2d(channels, activation="relu")


def _batch_renorm(channels: int, *, batches: int = USUAL_BATCHES, **_: int) -> nn.Module:
    """Build batch renorm that is batch norm for a sixteenth of training, with its last bounds from the middle on."""
    return BatchRenorm2d(channels, activation="relu", warmup_steps=batches // 16, ramp_steps=batches * 7 // 16)


def _group_norm(channels: int, **_: int) -> nn.Module:
    return NormAddActivation(nn.GroupNorm(max(1, channels // CHANNELS_PER_GROUP), channels), "relu")


NORMALIZATIONS: dict[str, Normalization] = {
    "batch_norm": Normalization(
        build=_ours(BatchNorm2d),
        summary="batch normalization, steadynorm.BatchNorm2d",
    ),
    "self_tuned_batch_norm": Normalization(
        build=_ours(BatchNorm2d, running="self_tuned"),
        summary="batch normalization whose running statistics choose their own momentum, steadynorm.BatchNorm2d",
    ),
    "several_decays": Normalization(
        build=lambda channels, **_: SeveralDecays(channels),
        summary="batch normalization with running statistics of decay 0.9, 0.99, 0.5 and self-tuned, which evaluate",
    ),
    "batch_renorm": Normalization(
        build=_batch_renorm,
        summary="batch renormalization, steadynorm.BatchRenorm2d, its bounds wide open from the middle of training on",
    ),
    "gated_batch_norm": Normalization(
        build=_gated_batch_norm,
        summary="between batch and running statistics as far as a batch is believed, steadynorm.GatedBatchNorm2d",
    ),
    "ghost_batch_norm": Normalization(
        build=_ours(GhostBatchNorm2d, ghost_batch_size=32),
        summary="batch normalization of 32 images at a time, steadynorm.GhostBatchNorm2d",
    ),
    "frozen_batch_norm": Normalization(
        build=lambda channels, **_: FrozenBatchNorm2d(channels, activation="relu", freeze_affine=False),
        summary="a learned weight and bias for each channel and no statistics, steadynorm.FrozenBatchNorm2d",
    ),
    "sync_batch_norm": Normalization(
        build=_ours(SyncBatchNorm),
        summary="batch normalization by the statistics of all workers' parts of a batch, steadynorm.SyncBatchNorm",
    ),
    "none": Normalization(
        build=lambda channels, **_: NormAddActivation(nn.Identity(), "relu"),
        summary="no normalization; the convolutions have a bias instead",
        convolution_bias=True,
    ),
    "torch_batch_norm": Normalization(
        build=lambda channels, **_: NormAddActivation(nn.BatchNorm2d(channels), "relu"),
        summary="batch normalization, torch.nn.BatchNorm2d",
    ),
    "layer_norm": Normalization(
        build=lambda channels, **_: NormAddActivation(nn.GroupNorm(1, channels), "relu"),
        summary="per sample, over all channels and positions, torch.nn.GroupNorm with one group",
    ),
    "group_norm": Normalization(
        build=_group_norm,
        summary=f"per sample and group of {CHANNELS_PER_GROUP} channels, torch.nn.GroupNorm",
    ),
    "instance_norm": Normalization(
        build=lambda channels, **_: NormAddActivation(nn.InstanceNorm2d(channels, affine=True), "relu"),
        summary="per sample and channel, torch.nn.InstanceNorm2d",
    ),
}


def find_normalization(name: str) -> Normalization:
    """Look an arm up.

    Raises:
        UserError: no arm has this name.
    """
    check_known("--arms", [name], NORMALIZATIONS, what="normalization")
    return NORMALIZATIONS[name]
