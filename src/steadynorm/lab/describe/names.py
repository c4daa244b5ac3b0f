"""Names of arms, methods and data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from steadynorm.lab.arms import arm_label
from steadynorm.reporting.records import Record
from steadynorm.reporting.words import listing

__all__ = ["PLAIN", "arm_label", "arm_labels", "batch_arm", "data_label", "few_arms", "method_label", "pair"]

BATCH_NORM = ("batch_norm", "torch_batch_norm")
"""Arms that are the article's batch norm, ours first."""
PLAIN = "none"
"""The arm without normalization."""
DATA = {"cifar10": "CIFAR-10", "digits": "the embedded digits", "mnist": "MNIST", "shapes": "the embedded shapes"}
METHODS = {"prior_16": "prior of 16", "self_tuned": "following, tuned", "gated": "gated layers"}
ArmT = TypeVar("ArmT")


def arm_labels(record: Record) -> list[str]:
    """Name all arms, in the order that decides their colors in every figure."""
    return [arm_label(str(arm)) for arm in record.config["arms"]]


def batch_arm(arms: Collection[str]) -> str | None:
    """Find the arm that is batch norm."""
    return next((name for name in BATCH_NORM if name in arms), None)


def pair(arms: Mapping[str, ArmT]) -> tuple[ArmT | None, ArmT | None]:
    """Find batch norm and no normalization among arms by their names."""
    return arms.get(batch_arm(arms) or ""), arms.get(PLAIN)


def few_arms(arms: Sequence[str], *, most: int = 2) -> str:
    """Name up to this many arms, or count them, to keep a headline short."""
    return listing([arm_label(arm) for arm in arms]) if len(arms) <= most else f"{len(arms)} arms"


def method_label(method: str) -> str:
    """Name a method that chooses the statistics of a test batch."""
    if method.startswith("ema_"):
        return f"following {method.removeprefix('ema_')}"
    return METHODS.get(method, method.replace("_", " "))


def data_label(record: Record) -> str:
    """Name the data: a path by its last part."""
    data = str(record.config["data"])
    return DATA.get(data, str(record.resolved.get("data_name", data)))
