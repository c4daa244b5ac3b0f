"""The networks, with the normalization left open: our own, and the user's networks with their norms replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.lab.arms import arm_label, parse_arm
from steadynorm.lab.functions import line_of
from steadynorm.lab.networks.blocks import ResidualBlock, initialize_
from steadynorm.lab.networks.cnn import cnn
from steadynorm.lab.networks.converted import with_arm
from steadynorm.lab.networks.given import Shape, images, is_given, make_given, run_once
from steadynorm.lab.networks.mlp import mlp
from steadynorm.lab.networks.mobilenet import mobilenet
from steadynorm.lab.networks.resnet18 import resnet18
from steadynorm.lab.networks.resnet20 import resnet20
from steadynorm.lab.networks.vgg import vgg
from steadynorm.lab.normalizations import find_normalization
from steadynorm.layers import NormAddActivation
from steadynorm.reporting.failure import UserError, check_known, one_line

__all__ = [
    *("NETWORKS", "RESIDUAL", "build_network", "check_network", "cnn", "describe_network", "resnet20"),
    "zero_last_gamma_",
]

NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "cnn": cnn,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "vgg": vgg,
    "mobilenet": mobilenet,
    "mlp": mlp,
}
"""Our own networks, by name."""
TAKES = {"cnn": ("image_size", "depth", "widths"), "vgg": ("image_size",), "mlp": ("image_size",)}
"""Arguments of a network besides channels and classes."""
RESIDUAL = ("resnet20", "resnet18", "mobilenet")
"""Networks with residual blocks, which may start as the identity."""


@dataclass(frozen=True, kw_only=True)
class _Built:
    model: nn.Module
    note: str
    """How the arm was made from a user's network; empty for our own."""


def build_network(
    name: str,
    *,
    arm: str,
    depth: int,
    widths: Sequence[int],
    classes: int,
    seed: int,
    channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    **training: int,
) -> nn.Module:
    """Build a network and draw its initial weights.

    Two arms with the same seed start from the same weights, except those of the normalizations. Of our own networks
    convolutions and linear maps alone draw random numbers, in the same order; of the user's, every arm is the same
    model with other layers in the place of its batch norms, see :mod:`steadynorm.lab.networks.converted`.

    Args:
        name: name of :data:`NETWORKS`, or what :mod:`steadynorm.lab.networks.given` calls.
        arm: a normalization as :func:`steadynorm.lab.normalizations.find_normalization` reads it.
        depth: number of convolutions of ``cnn``.
        widths: channels of each stage of ``cnn``; a stage ends with 2x2 max-pooling.
        classes: number of outputs.
        seed: decides the weights.
        channels: channels of the images.
        image_size: their height and width in pixels.
        training: what layers may use of the training: ``update_every``, ``batches``, see ``Normalization.build``.

    Raises:
        UserError: the network or the arm is unknown, or the arguments make no network.
    """
    own = {"depth": depth, "widths": widths}
    shape = Shape(classes=classes, channels=channels, image_size=image_size)
    return _build(name, arm, shape, own, seed, training).model


def describe_network(name: str, *, arm: str, seed: int, depth: int, widths: Sequence[int], shape: Shape) -> str:
    """Build a network, take one step with two images, and return how the arm was made from a user's network.

    Raises:
        UserError: it cannot be built, or does not accept the images.
    """
    torch_state = torch.get_rng_state()
    try:
        built = _build(name, arm, shape, {"depth": depth, "widths": widths}, seed, {})
        calls_code = parse_arm(arm).calls_code
        if calls_code:
            _check_outputs(built.model, arm)
        which = arm if calls_code else arm_label(arm)
        run_once(built.model.train(), shape, f"--network {name} with {which}", backward=True)
    finally:
        torch.set_rng_state(torch_state)
    return built.note


def _check_outputs(model: nn.Module, arm: str) -> None:
    """Let each layer of the user's class refuse an output that does not have the shape of its input."""

    def check(layer: nn.Module, given: tuple[Tensor, ...], output: object) -> None:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if found != (wanted := tuple(given[0].shape)):
            raise UserError(
                f"--arms: {arm}: {type(layer).__name__} must give the shape of its input, {wanted}, got {found}."
            )

    for module in model.modules():
        if isinstance(module, NormAddActivation):
            module.norm.register_forward_hook(check)


def _build(name: str, arm: str, shape: Shape, own: dict[str, Any], seed: int, training: dict[str, int]) -> _Built:
    if is_given(name):
        model = make_given(name, shape, seed)
        changed, note = with_arm(model, arm, network=name, example=images(model, shape), **training)
        return _Built(model=changed, note=note)
    check_network(name)
    norm = find_normalization(arm)
    norm = replace(norm, build=partial(norm.build, **training))
    how = {"image_size": shape.image_size, **own}
    told = {key: how[key] for key in TAKES.get(name, ())}
    try:
        model = NETWORKS[name](norm, classes=shape.classes, channels=shape.channels, **told)
    except UserError:
        raise
    except Exception as error:  # a user's layer may raise anything
        if isinstance(error, RuntimeError) and norm.settings is None and not parse_arm(arm).calls_code:
            raise  # raised by torch for sizes that no memory has
        raise UserError(f"--arms: {arm}: failed with {one_line(error)}{line_of(error)}.") from error
    initialize_(model, seed)
    return _Built(model=model, note="")


def check_network(name: str) -> None:
    """Refuse a name that no network can have; imports no user code.

    Raises:
        UserError: unknown network.
    """
    if not is_given(name):
        known = (*NETWORKS, "PACKAGE.MODULE:FUNCTION", "timm:NAME", "hf:CONFIG")
        check_known("--network", [name], known, what="network")


@torch.no_grad()
def zero_last_gamma_(model: nn.Module) -> None:
    """Start every residual block as its shortcut: the weight of its last normalization is zero.

    Raises:
        UserError: there is no residual block whose normalization has a weight.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 5.1.
    """
    blocks = (block for block in model.modules() if isinstance(block, ResidualBlock))
    weights = [getattr(block.last_norm, "weight", None) for block in blocks]
    if not weights or any(weight is None for weight in weights):
        raise UserError(
            "zero_last_gamma: needs residual blocks whose normalization has a weight. "
            f"Use one of {', '.join(RESIDUAL)}."
        )
    for weight in weights:
        assert weight is not None
        weight.zero_()
