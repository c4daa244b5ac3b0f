"""Healthy networks that look unusual: the doctor may report only notes."""

from benchmarks.doctor.healthy import both, further, parts, recipes, reported, threads
from benchmarks.doctor.healthy.registry import HEALTHY, Variant

__all__ = ["HEALTHY", "Variant", "both", "further", "parts", "recipes", "reported", "threads"]
