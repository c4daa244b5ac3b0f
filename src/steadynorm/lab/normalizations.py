"""The arms: the normalizations that an experiment can put into a network, by name or as a user class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from steadynorm.functional import Activation
from steadynorm.lab.arms import ArmText, parse_arm
from steadynorm.lab.functions import find_named
from steadynorm.lab.several_decays import SeveralDecays
from steadynorm.layers import NormAddActivation
from steadynorm.layers.kinds import KINDS, Kind
from steadynorm.reporting.failure import UserError, check_known, one_line

__all__ = ["AS_BUILT", "NORMALIZATIONS", "Normalization", "check_settings", "find_normalization"]

AS_BUILT = "as_built"
"""Arm that leaves the layers of a user's network unchanged."""
USUAL_BATCHES = 7_800  # for the 20 epochs of compare on CIFAR-10
CHANNELS_PER_GROUP = 16  # group norm's setting with a fixed group size, Wu & He 2018 (arXiv 1803.08494), table 3
DECIDED = ("num_features", "num_channels", "num_groups", "activation", "update_every", "device", "dtype")
"""Arguments that the network sets; not settings of an arm."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How an arm normalizes."""

    build: Callable[..., nn.Module]
    """Number of channels -> module computing activation(norm(x) + residual) as ``module(x, residual=None)``.

    ``dimensions``: of the layer, 2 for images, 1 for (N, C); ``activation``: relu, or None for none.
    Layers that use it receive in ``update_every`` how many batches a step takes, after which running
    statistics may move, and in ``batches`` how many there are in the whole training. What else there is are settings.
    """
    summary: str
    """One line for ``--help`` and reports."""
    takes: Collection[str] = ()
    """Names of its settings."""
    converts: Callable[..., tuple[str, dict[str, Any]]] | None = None
    """``update_every`` and ``batches`` -> kind and options with which :func:`steadynorm.surgery.convert_` makes it of
    another batch norm; None if the layer as built replaces it."""
    settings: Mapping[str, Any] | None = None
    """Values given for ``takes``."""
    convolution_bias: bool = False
    """Whether the convolution before it needs a bias, because the arm adds none itself."""


def _arm_of(kind: Kind, **own: Any) -> Normalization:  # noqa: ANN401 (the layer's)
    def options(update_every: int, batches: int) -> dict[str, Any]:
        # Layers that train by their running statistics let them follow every batch: they must be of the weights at
        # hand. Those of the step before did not do (cnn, 64 batches of 2 to a step, rate 0.02, one pass over CIFAR-10):
        # renorm 10 to 16 %, gated 33 to 38 %, batch norm 53 %.
        return {"update_every": 1 if kind.trains_by_running else update_every, **kind.arm(batches), **own}

    def build(
        channels: int,
        *,
        dimensions: int = 2,
        activation: Activation | None = "relu",
        update_every: int = 1,
        batches: int = USUAL_BATCHES,
        **settings: Any,  # noqa: ANN401 (the layer's)
    ) -> nn.Module:
        layer = kind.class_for(dimensions)
        assert layer is not None
        return layer(channels, activation=activation, **options(update_every, batches) | settings)

    layer = kind.class_for(2)
    assert layer is not None
    return Normalization(
        build=build,
        summary=f"{kind.training}, steadynorm.{layer.__name__}",
        takes=_settings_of(layer, but=own),
        converts=lambda update_every=1, batches=USUAL_BATCHES: (kind.name, options(update_every, batches)),
    )


def _settings_of(layer: Callable[..., nn.Module], *, but: Collection[str] = ()) -> list[str]:
    return [name for name in inspect.signature(layer).parameters if name not in (*DECIDED, *but)]


def _torchs(
    summary: str,
    norm: Callable[..., nn.Module],
    *,
    takes: Collection[str],
    kind: str = "",
    convolution_bias: bool = False,
) -> Normalization:
    """Make an arm of a layer that knows neither residual nor activation: ``norm(channels, dimensions, **settings)``."""

    def build(
        channels: int,
        *,
        dimensions: int = 2,
        activation: Activation | None = "relu",
        update_every: int = 1,
        batches: int = USUAL_BATCHES,
        **settings: Any,  # noqa: ANN401 (the layer's)
    ) -> nn.Module:
        return NormAddActivation(norm(channels, dimensions, **settings), activation)

    def converts(**training: int) -> tuple[str, dict[str, Any]]:
        return kind, {}

    return Normalization(
        build=build,
        summary=summary,
        takes=takes,
        converts=converts if kind else None,
        convolution_bias=convolution_bias,
    )


def _group_norm(channels: int, dimensions: int, *, num_groups: int | None = None, **settings: Any) -> nn.Module:  # noqa: ANN401
    most = max(1, channels // CHANNELS_PER_GROUP)
    groups = next(each for each in range(most, 0, -1) if channels % each == 0)
    return nn.GroupNorm(groups if num_groups is None else num_groups, channels, **settings)


def _instance_norm(channels: int, dimensions: int, **settings: Any) -> nn.Module:  # noqa: ANN401
    if dimensions == 1:
        raise ValueError("instance_norm needs positions to average over, and a unit has one number")
    return nn.InstanceNorm2d(channels, **{"affine": True} | settings)


_OURS = {kind.name: kind for kind in KINDS.values() if kind.ours and kind.class_for(2)}
_AFFINE = ("eps", "affine")
NORMALIZATIONS: dict[str, Normalization] = {
    **{name: _arm_of(kind) for name, kind in _OURS.items()},
    "self_tuned_batch_norm": replace(
        _arm_of(_OURS["batch_norm"], running="self_tuned"),
        summary="the batch's moments, with running statistics that choose their own momentum, steadynorm.BatchNorm2d",
    ),
    "several_decays": Normalization(
        build=lambda channels, *, dimensions=2, activation="relu", **_: SeveralDecays(
            channels, dimensions=dimensions, activation=activation
        ),
        summary="batch normalization with running statistics of decay 0.9, 0.99, 0.5 and self-tuned, which evaluate",
    ),
    "none": _torchs(
        "no normalization; the convolutions have a bias instead",
        lambda channels, dimensions: nn.Identity(),
        takes=(),
        convolution_bias=True,
    ),
    "torch_batch_norm": _torchs(
        "batch normalization, torch.nn.BatchNorm2d",
        lambda channels, dimensions, **settings: KINDS["torch_batch_norm"].classes[dimensions](channels, **settings),
        takes=_settings_of(nn.BatchNorm2d),
        kind="torch_batch_norm",
    ),
    "layer_norm": _torchs(
        "per sample, over all channels and positions, torch.nn.GroupNorm with one group",
        lambda channels, dimensions, **settings: nn.GroupNorm(1, channels, **settings),
        takes=_AFFINE,
        kind="layer_norm",
    ),
    "group_norm": _torchs(
        f"per sample and group of {CHANNELS_PER_GROUP} channels, torch.nn.GroupNorm",
        _group_norm,
        takes=("num_groups", *_AFFINE),
        kind="group_norm",
    ),
    "instance_norm": _torchs(
        "per sample and channel, torch.nn.InstanceNorm2d",
        _instance_norm,
        takes=_settings_of(nn.InstanceNorm2d),
    ),
}
"""The kinds of :mod:`steadynorm.layers.kinds` that have a 2d layer, and what only experiments compare them with."""


def find_normalization(arm: str) -> Normalization:
    """Look up an arm, or import the user class that it names.

    Raises:
        UserError: the arm or the setting is unknown, or the class cannot be found.
    """
    found = parse_arm(arm)
    norm = _of_class(found) if found.calls_code else _registered(found)
    if not found.options:
        return norm
    return replace(norm, build=partial(norm.build, **found.options), settings=found.options)


def check_settings(arm: str) -> None:
    """Refuse an unknown arm or setting; imports no user class.

    Raises:
        UserError: unknown arm or setting.
    """
    found = parse_arm(arm)
    if not found.calls_code and found.target != AS_BUILT:
        _registered(found)


def _registered(arm: ArmText) -> Normalization:
    check_known("--arms", [arm.target], (*NORMALIZATIONS, AS_BUILT), what="normalization")
    if arm.target == AS_BUILT:
        raise UserError(f"--arms: {arm.text}: {AS_BUILT} is for --network of your own.")
    norm = NORMALIZATIONS[arm.target]
    if unknown := [name for name in arm.options if name not in norm.takes]:
        raise UserError(
            f"--arms: {arm.text}: {arm.target} has no setting {unknown[0]!r}. It has {', '.join(norm.takes) or 'none'}."
        )
    return norm


def _settings_of_class(layer: Callable[..., object]) -> list[str]:
    """Return the names of a class's arguments after the number of channels."""
    others = list(inspect.signature(layer).parameters.values())[1:]
    return [each.name for each in others if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def _of_class(arm: ArmText) -> Normalization:
    """Make an arm of a user class whose first argument is the number of channels."""
    layer = find_named(arm.target)
    try:
        inspect.signature(layer).bind(CHANNELS_PER_GROUP, **arm.options)
    except TypeError as error:
        has = f" Its settings: {', '.join(_settings_of_class(layer)) or 'none'}." if callable(layer) else ""
        raise UserError(
            f"--arms: {arm.text}: must be a class that is called with the number of channels and its settings: "
            f"{one_line(error).partition(': ')[2]}.{has}"
        ) from error
    except ValueError:  # it has no readable signature
        pass

    def norm(channels: int, dimensions: int, **settings: Any) -> nn.Module:  # noqa: ANN401 (the class's)
        made = layer(channels, **settings)
        if not isinstance(made, nn.Module):
            raise TypeError(f"{arm.target} must make a torch.nn.Module, got {type(made).__name__}")
        return made

    return _torchs(f"{arm.target}", norm, takes=tuple(arm.options))
