"""Healthy networks that look unusual: nothing may be said of them but notes."""

from benchmarks.doctor.healthy import both, further, parts, recipes, reported, threads
from benchmarks.doctor.healthy.registry import HEALTHY, Variant

__all__ = ["HEALTHY", "Variant", "both", "further", "parts", "recipes", "reported", "threads"]
