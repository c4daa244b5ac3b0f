"""Registry of the norms: the classes of each, its statistics in training and evaluation, and its requirements.

To add a norm, add its entry here. Conversion, the arms of ``steadynorm compare``, the table in ``docs/family.md`` and
the tests of the family all read this list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from steadynorm.layers.base import BatchNormBase
from steadynorm.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from steadynorm.layers.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from steadynorm.layers.frozen_batch_norm import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from steadynorm.layers.gated_batch_norm import GatedBatchNorm1d, GatedBatchNorm2d, GatedBatchNorm3d
from steadynorm.layers.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from steadynorm.layers.masked_batch_norm import MaskedBatchNorm1d
from steadynorm.layers.sync_batch_norm import SyncBatchNorm

__all__ = ["BATCH_NORMS", "FAMILY", "KINDS", "Kind"]


def _no_options(batches: int) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of layers: one class for each number of spatial dimensions, or one for all.

    Args:
        name: name in :func:`steadynorm.surgery.convert_` and among the arms of experiments.
        classes: number of spatial dimensions (1, 2, 3) -> class; 0 for a class that takes any.
        training: statistics that it normalizes by in training.
        evaluation: statistics that it normalizes by in evaluation.
        purpose: recommended use.
        evaluates_as_batch_norm: whether it evaluates as batch norm, by the running statistics.
        trains_by_batch: whether training normalizes by the moments of the whole input and by nothing else.
        trains_by_running: whether training reads the running statistics, as they are before this batch updates them.
        arm: number of batches in a training run -> options with which experiments build it.
    """

    name: str
    classes: Mapping[int, type[nn.Module]]
    training: str
    evaluation: str = "as batch norm"
    purpose: str = ""
    evaluates_as_batch_norm: bool = True
    trains_by_batch: bool = False
    trains_by_running: bool = False
    arm: Callable[[int], Mapping[str, Any]] = _no_options

    @property
    def ours(self) -> bool:
        """Whether its layers are ours: they fuse residual and activation and take our options."""
        return any(issubclass(cls, BatchNormBase) for cls in self.classes.values())

    @property
    def needs_statistics(self) -> bool:
        """Whether it requires running statistics."""
        return any(getattr(cls, "_statistics_are", "") for cls in self.classes.values())

    @property
    def is_frozen(self) -> bool:
        """Whether its running statistics never change."""
        return any(getattr(cls, "_is_frozen", False) for cls in self.classes.values())

    def class_for(self, dimensions: int | None) -> type[nn.Module] | None:
        """Return the class for a number of spatial dimensions; None if there is none or the number is unknown."""
        return self.classes.get(0) or self.classes.get(dimensions or -1)

    def options(self) -> dict[str, Any]:
        """Return the arguments of its classes that torch's batch norm does not have, with their defaults.

        A required argument has the value None. Bias and activation are left out.
        """
        return {
            name: None if each.default is each.empty else each.default
            for cls in self.classes.values()
            for name, each in inspect.signature(cls).parameters.items()
            if name not in _TORCHS
        }


_TORCHS = {*inspect.signature(nn.BatchNorm2d).parameters, "bias", "activation"}


BATCH_NORMS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="batch_norm",
            classes={1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d},
            training="the batch's moments",
            evaluation="the running statistics",
            purpose="similar batches of 16 samples and more",
            trains_by_batch=True,
        ),
        Kind(
            name="batch_renorm",
            classes={1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d},
            training="the batch's moments, corrected towards the running ones within bounds",
            purpose="small batches; samples that depend on each other",
            trains_by_running=True,
            # Plain batch norm for the first sixteenth of the training; final bounds from the middle on.
            arm=lambda batches: {"warmup_steps": batches // 16, "ramp_steps": batches * 7 // 16},
        ),
        Kind(
            name="gated_batch_norm",
            classes={1: GatedBatchNorm1d, 2: GatedBatchNorm2d, 3: GatedBatchNorm3d},
            training="a blend of running and batch moments, by the reliability of the batch",
            evaluation="the same",
            purpose="batches of any size, even one sample; shifted data",
            evaluates_as_batch_norm=False,
            trains_by_running=True,
        ),
        Kind(
            name="ghost_batch_norm",
            classes={1: GhostBatchNorm1d, 2: GhostBatchNorm2d, 3: GhostBatchNorm3d},
            training="moments of chunks of the batch",
            purpose="large batches that should train like small ones",
            arm=lambda batches: {"ghost_batch_size": 32},
        ),
        Kind(
            name="sync_batch_norm",
            classes={0: SyncBatchNorm},
            training="the moments of all ranks' batches",
            purpose="several workers with few samples each",
        ),
        Kind(
            name="masked_batch_norm",
            classes={1: MaskedBatchNorm1d},
            training="the moments without padding",
            evaluation="as batch norm; padding stays as it is",
            purpose="sequences of unequal length",
        ),
        Kind(
            name="frozen_batch_norm",
            classes={1: FrozenBatchNorm1d, 2: FrozenBatchNorm2d, 3: FrozenBatchNorm3d},
            training="the running statistics, fixed",
            purpose="fine-tuning; batches too small for statistics",
            trains_by_running=True,
            arm=lambda batches: {"freeze_affine": False},
        ),
        Kind(
            name="torch_batch_norm",
            classes={1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
            training="the batch's moments",
            trains_by_batch=True,
        ),
        Kind(
            name="torch_sync_batch_norm",
            classes={0: nn.SyncBatchNorm},
            training="the moments of all ranks' batches",
        ),
    )
}
"""Every kind of batch norm, by name."""
KINDS: dict[str, Kind] = BATCH_NORMS | {
    "group_norm": Kind(
        name="group_norm",
        classes={0: nn.GroupNorm},
        training="moments of a sample's group of channels",
        evaluation="the same",
        evaluates_as_batch_norm=False,
    ),
    "layer_norm": Kind(
        name="layer_norm",
        classes={0: nn.LayerNorm},
        training="moments of a sample",
        evaluation="the same",
        evaluates_as_batch_norm=False,
    ),
}
"""Every kind that a batch norm can be converted to, by name."""
FAMILY = {name: kind for name, kind in BATCH_NORMS.items() if kind.ours and len(kind.classes) == 3}
"""Our kinds that have a class for each number of dimensions."""
