"""The arms: every normalization that an experiment can put into a network, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from steadynorm.lab.several_decays import SeveralDecays
from steadynorm.layers import NormAddActivation
from steadynorm.layers.kinds import KINDS, Kind
from steadynorm.reporting.failure import check_known

__all__ = ["NORMALIZATIONS", "Normalization", "find_normalization"]

USUAL_BATCHES = 7_800  # of compare's 20 epochs of CIFAR-10
CHANNELS_PER_GROUP = 16  # group norm's setting with a fixed group size, Wu & He 2018 (arXiv 1803.08494), table 3


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How an arm normalizes."""

    build: Callable[..., nn.Module]
    """Number of channels -> module computing relu(norm(x) + residual) as ``module(x, residual=None)``.

    Layers that have to do with it are told by ``update_every`` how many batches a step takes, after which running
    statistics may move, and by ``batches`` how many there are in the whole training.
    """
    summary: str
    """One line for ``--help`` and reports."""
    convolution_bias: bool = False
    """Whether the convolution before it needs a bias, because the arm adds none itself."""


def _arm_of(kind: Kind, layer: type[nn.Module], **options: Any) -> Normalization:  # noqa: ANN401 (the layer's)
    def build(channels: int, *, update_every: int = 1, batches: int = USUAL_BATCHES) -> nn.Module:
        # Layers that train by their running statistics let them follow every batch: they must be of the weights at
        # hand. Those of the step before did not do (cnn, 64 batches of 2 to a step, rate 0.02, one pass over CIFAR-10):
        # renorm 10 to 16 %, gated 33 to 38 %, batch norm 53 %.
        every = 1 if kind.trains_by_running else update_every
        return layer(channels, activation="relu", update_every=every, **{**kind.arm(batches), **options})

    return Normalization(build=build, summary=f"{kind.training}, steadynorm.{layer.__name__}")


def _torchs(summary: str, norm: Callable[[int], nn.Module], *, convolution_bias: bool = False) -> Normalization:
    return Normalization(
        build=lambda channels, **_: NormAddActivation(norm(channels), "relu"),
        summary=summary,
        convolution_bias=convolution_bias,
    )


_2D = {kind.name: (kind, layer) for kind in KINDS.values() if kind.ours and (layer := kind.class_for(2))}
NORMALIZATIONS: dict[str, Normalization] = {
    **{name: _arm_of(kind, layer) for name, (kind, layer) in _2D.items()},
    "self_tuned_batch_norm": replace(
        _arm_of(*_2D["batch_norm"], running="self_tuned"),
        summary="the batch's moments, with running statistics that choose their own momentum, steadynorm.BatchNorm2d",
    ),
    "several_decays": Normalization(
        build=lambda channels, **_: SeveralDecays(channels),
        summary="batch normalization with running statistics of decay 0.9, 0.99, 0.5 and self-tuned, which evaluate",
    ),
    "none": _torchs(
        "no normalization; the convolutions have a bias instead", lambda _: nn.Identity(), convolution_bias=True
    ),
    "torch_batch_norm": _torchs("batch normalization, torch.nn.BatchNorm2d", nn.BatchNorm2d),
    "layer_norm": _torchs(
        "per sample, over all channels and positions, torch.nn.GroupNorm with one group",
        lambda channels: nn.GroupNorm(1, channels),
    ),
    "group_norm": _torchs(
        f"per sample and group of {CHANNELS_PER_GROUP} channels, torch.nn.GroupNorm",
        lambda channels: nn.GroupNorm(max(1, channels // CHANNELS_PER_GROUP), channels),
    ),
    "instance_norm": _torchs(
        "per sample and channel, torch.nn.InstanceNorm2d", lambda channels: nn.InstanceNorm2d(channels, affine=True)
    ),
}
"""The kinds of :mod:`steadynorm.layers.kinds` that have a 2d layer, and what only experiments compare them with."""


def find_normalization(name: str) -> Normalization:
    """Look an arm up.

    Raises:
        UserError: no arm has this name.
    """
    check_known("--arms", [name], NORMALIZATIONS, what="normalization")
    return NORMALIZATIONS[name]
