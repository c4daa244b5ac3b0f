"""The layers of the family, with arguments that let a small test see what each does."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from steadynorm import layers
from steadynorm.layers.kinds import FAMILY
from tests.support.layers import CHANNELS, make_native, randomize_

__all__ = ["FOLLOWING", "MEMBERS", "build", "each_batch_norm_in_evaluation", "each_follower", "each_member", "torchs"]

_EXAMPLES: dict[str, dict[str, Any]] = {
    "batch_renorm": {"warmup_steps": 1, "ramp_steps": 2},
    "frozen_batch_norm": {"freeze_affine": False},
    "ghost_batch_norm": {"ghost_batch_size": 2},
}
"""Arguments that let a small test see what a kind does."""
_KINDS = {kind.classes[1].__name__.removesuffix("1d"): kind for kind in FAMILY.values()}
MEMBERS = {name: _EXAMPLES.get(kind.name, {}) for name, kind in _KINDS.items()}
"""Class name without its number of dimensions -> keyword arguments."""
EVALUATING_AS_BATCH_NORM = [name for name, kind in _KINDS.items() if kind.evaluates_as_batch_norm]
FOLLOWING = [name for name, kind in _KINDS.items() if not kind.is_frozen]

each_batch_norm_in_evaluation = pytest.mark.parametrize("name", EVALUATING_AS_BATCH_NORM)
each_member = pytest.mark.parametrize("name", MEMBERS)
each_follower = pytest.mark.parametrize("name", FOLLOWING)


def build(name: str, dimensions: int = 4, **arguments: Any) -> nn.Module:
    """A member for input of so many dimensions, with random numbers in it, in float64."""
    cls = getattr(layers, f"{name}{max(dimensions, 3) - 2}d")
    return randomize_(cls(CHANNELS, **(MEMBERS[name] | arguments)).double())


def torchs(dimensions: int = 4, **arguments: Any) -> nn.Module:
    """torch's batch norm with the same random numbers."""
    return randomize_(make_native(getattr(nn, f"BatchNorm{max(dimensions, 3) - 2}d"), CHANNELS, **arguments).double())
