"""Normalization layers: modules that hold state and call the functions of :mod:`steadynorm.functional`."""

from steadynorm.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from steadynorm.layers.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from steadynorm.layers.frozen_batch_norm import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from steadynorm.layers.gated_batch_norm import GatedBatchNorm1d, GatedBatchNorm2d, GatedBatchNorm3d
from steadynorm.layers.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from steadynorm.layers.masked_batch_norm import MaskedBatchNorm1d
from steadynorm.layers.norm_add_activation import NormAddActivation
from steadynorm.layers.state import batch_norm_state
from steadynorm.layers.sync_batch_norm import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "GatedBatchNorm1d",
    "GatedBatchNorm2d",
    "GatedBatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "MaskedBatchNorm1d",
    "NormAddActivation",
    "SyncBatchNorm",
    "batch_norm_state",
]
