"""What streams, shifts and ways to adapt are called in the report of shift."""

from __future__ import annotations

from steadynorm.lab.experiments.shift import CLEAN, MIXED, SWAPPED

__all__ = ["kind_label", "method_label", "shift_label"]

METHODS = {
    "stored": "stored",
    "batch": "batch",
    "prior_16": "prior of 16",
    "self_tuned": "following, tuned",
    "gated": "gated layers",
    "gate": "gate",
}
KINDS = {
    "iid": "well mixed",
    MIXED: "corruptions mixed",
    "class_ordered": "class by class",
    "bursts": "bursts",
    "single_class": "single class",
    "one_by_one": "one by one",
}
SHIFTS = {CLEAN: "clean", SWAPPED: "labels 0 and 1 swapped", MIXED: "all corruptions"}


def method_label(method: str) -> str:
    """Name a way to choose the statistics."""
    if method.startswith("ema_"):
        return f"following {method.removeprefix('ema_')}"
    return METHODS.get(method, method.replace("_", " "))


def kind_label(kind: str) -> str:
    """Name a kind of stream."""
    return KINDS[kind]


def shift_label(shift: str) -> str:
    """Name what is done to the images."""
    return SHIFTS.get(shift, shift.replace("_", " "))
