"""What streams and shifts are called in the report of shift."""

from __future__ import annotations

from steadynorm.lab.experiments.shift import CLEAN, MIXED, SWAPPED

__all__ = ["kind_label", "shift_label"]

KINDS = {
    "iid": "well mixed",
    MIXED: "corruptions mixed",
    "class_ordered": "class by class",
    "bursts": "bursts",
    "single_class": "single class",
    "one_by_one": "one by one",
}
SHIFTS = {CLEAN: "clean", SWAPPED: "labels 0 and 1 swapped", MIXED: "all corruptions"}


def kind_label(kind: str) -> str:
    """Name a kind of stream."""
    return KINDS[kind]


def shift_label(shift: str) -> str:
    """Name what is done to the images."""
    return SHIFTS.get(shift, shift.replace("_", " "))
