"""Checks before an experiment: whether its networks can be built for its data, and what user code they call."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from steadynorm.lab.arms import parse_arm
from steadynorm.lab.data import Dataset
from steadynorm.lab.networks import build_network, describe_network
from steadynorm.lab.networks.given import Shape, calls_code, is_given
from steadynorm.reporting.flags import flag

__all__ = ["called_code", "calling_fields", "try_networks", "words_of"]


DEPTH, WIDTHS = 6, (32, 64, 128)
"""Settings of the cnn if an experiment has no flags for them."""


def called_code(config: Any) -> list[str]:  # noqa: ANN401 (any experiment's dataclass)
    """Return the names of the user functions and classes that build the networks of a configuration."""
    network = getattr(config, "network", "")
    arms = (parse_arm(arm) for arm in getattr(config, "arms", ()))
    return [*([network] if calls_code(network) else []), *(arm.target for arm in arms if arm.calls_code)]


def calling_fields(config: Any) -> list[str]:  # noqa: ANN401 (likewise)
    """Return the fields whose values name user code: data, network, arms."""
    code, data = called_code(config), re.fullmatch(r"[\w.]+:[\w.]+", config.data)
    of_arms = [arm for arm in getattr(config, "arms", ()) if parse_arm(arm).calls_code]
    names = {"data": data, "network": getattr(config, "network", "") in code, "arms": of_arms}
    return [name for name, calls in names.items() if calls]


def words_of(config: Any, names: Iterable[str]) -> list[str]:  # noqa: ANN401 (likewise)
    """Return the flags of fields with their values."""
    values = {name: getattr(config, name) for name in names}
    return [
        word for name, value in values.items() for word in (flag(name), *([value] if isinstance(value, str) else value))
    ]


def try_networks(config: Any, arms: Iterable[str], dataset: Dataset) -> dict[str, str]:  # noqa: ANN401
    """Build the network of each arm at each depth, on the meta device if all of its code is our own.

    A user's network or layer is built and takes a step with two images, so that it does not fail after hours of
    other trainings.

    Returns:
        arm -> how it was made from a user's network; empty for our own networks.

    Raises:
        UserError: a network cannot be built, or does not accept the images.
    """
    depth, widths = getattr(config, "depth", DEPTH), getattr(config, "widths", WIDTHS)
    depths = depth if isinstance(depth, tuple) else (depth,)
    shape = Shape(channels=dataset.channels, classes=len(dataset.classes), image_size=dataset.image_size)
    notes = {}
    for depth in depths:
        how: dict[str, Any] = {"depth": depth, "widths": widths, "seed": config.seeds[0]}
        for arm in arms:
            if is_given(config.network) or parse_arm(arm).calls_code:
                if note := describe_network(config.network, arm=arm, shape=shape, **how):
                    notes[arm] = note
                continue
            with torch.device("meta"):  # building it takes neither memory nor time
                build_network(config.network, arm=arm, **vars(shape), **how)
    return notes
