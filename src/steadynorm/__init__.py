"""Normalization for PyTorch: drop-in layers held to a float64 reference, and the experiments that show what they do."""

from steadynorm.functional import batch_norm
from steadynorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm"]
