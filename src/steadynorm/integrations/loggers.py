"""Readings of norms written where a training logs: one function for TensorBoard, Weights & Biases and others."""

from __future__ import annotations

from steadynorm.reporting.loggers import PREFIX, log

__all__ = ["PREFIX", "log"]
