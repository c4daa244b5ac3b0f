"""Normalization for PyTorch: drop-in layers held to a float64 reference, and the experiments that show what they do."""

from steadynorm.functional import batch_norm
from steadynorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from steadynorm.ops.dispatch import backend, explain_backend

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "backend", "batch_norm", "explain_backend"]
