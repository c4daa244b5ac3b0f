"""The layers of the family, with arguments that let a small test see what each does."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from steadynorm import layers
from tests.support.layers import CHANNELS, make_native, randomize_

__all__ = ["FOLLOWING", "MEMBERS", "build", "each_batch_norm_in_evaluation", "each_follower", "each_member", "torchs"]

MEMBERS: dict[str, dict[str, Any]] = {
    "BatchNorm": {},
    "BatchRenorm": {"warmup_steps": 1, "ramp_steps": 2},
    "FrozenBatchNorm": {"freeze_affine": False},
    "GatedBatchNorm": {},
    "GhostBatchNorm": {"ghost_batch_size": 2},
}
"""Class name without its number of dimensions -> keyword arguments."""
EVALUATING_AS_BATCH_NORM = [name for name in MEMBERS if name != "GatedBatchNorm"]
FOLLOWING = [name for name in MEMBERS if name != "FrozenBatchNorm"]

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
