"""Normalization for PyTorch: drop-in layers, tools for whole models, and experiments."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

from steadynorm import _start, surgery  # _start first: help and Ctrl-C do not wait for imports
from steadynorm.functional import batch_norm
from steadynorm.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    GatedBatchNorm1d,
    GatedBatchNorm2d,
    GatedBatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    MaskedBatchNorm1d,
    SyncBatchNorm,
)
from steadynorm.layers.warmup import warmup
from steadynorm.ops.dispatch import backend, explain_backend

if TYPE_CHECKING:
    from steadynorm.doctor.diagnose import diagnose
    from steadynorm.doctor.treat import treat_
    from steadynorm.doctor.watch import Watch

del _start

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
    "SyncBatchNorm",
    "Watch",
    "backend",
    "batch_norm",
    "diagnose",
    "explain_backend",
    "surgery",
    "treat_",
    "warmup",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (what a module holds)
    """Import the doctor on first use, so that training does not wait for it."""
    if name in ("Watch", "diagnose", "treat_"):
        from steadynorm import doctor

        return getattr(doctor, name)
    raise AttributeError(f"module 'steadynorm' has no attribute {name!r}")
