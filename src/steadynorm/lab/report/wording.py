"""What arms and data are called in the sentences of all reports."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from steadynorm.lab.records import Record

__all__ = [
    "BATCH_NORM",
    "PLAIN",
    "arm_label",
    "batch_arm",
    "batches_label",
    "capital",
    "data_label",
    "epochs_label",
    "listing",
    "method_label",
    "plain_arm",
    "position",
    "seeds_label",
]

BATCH_NORM = ("batch_norm", "torch_batch_norm")
"""Arms that are the article's batch norm, ours first."""

PLAIN = "none"
"""The arm without normalization."""

ARM_LABELS = {
    "none": "no normalization",
    "self_tuned_batch_norm": "self-tuned batch norm",
    "torch_batch_norm": "torch's batch norm",
}

DATA_LABELS = {
    "cifar10": "CIFAR-10",
    "digits": "the embedded digits",
    "mnist": "MNIST",
    "shapes": "the embedded shapes",
}


def arm_label(arm: str) -> str:
    """Name an arm as a reader would."""
    return ARM_LABELS.get(arm, arm.replace("_", " "))


def position(record: Record, arm: str) -> int:
    """Place of an arm in the list of arms, which decides how it is drawn everywhere."""
    return [str(name) for name in record.config["arms"]].index(arm)


def data_label(record: Record) -> str:
    """Name the data."""
    data = str(record.config["data"])
    return DATA_LABELS.get(data, data)


def batches_label(record: Record) -> str:
    """Say how many images are normalized together, and how many of such batches a step averages."""
    size, together = record.config["batch_size"], record.config.get("accumulate", 1)  # few experiments have it
    size = listing([str(one) for one in size]) if isinstance(size, list) else size
    return f"batches of {size}" if together == 1 else f"batches of {size}, {together} to a step"


def batch_arm(arms: Collection[str]) -> str | None:
    """Find the arm that is batch norm."""
    return next((name for name in BATCH_NORM if name in arms), None)


def plain_arm(arms: Collection[str]) -> str | None:
    """Find the arm without normalization."""
    return PLAIN if PLAIN in arms else None


def epochs_label(number: int) -> str:
    """Say how many epochs: ``1 epoch``, ``20 epochs``."""
    return f"{number} epoch{'' if number == 1 else 's'}"


def seeds_label(seeds: int) -> str:
    """Say on how many seeds each number rests."""
    return "one seed, so no spread is known" if seeds == 1 else f"{seeds} seeds each"


METHODS = {
    "prior_16": "prior of 16",
    "self_tuned": "following, tuned",
    "gated": "gated layers",
}


def method_label(method: str) -> str:
    """Name a way to choose the statistics of a test batch."""
    if method.startswith("ema_"):
        return f"following {method.removeprefix('ema_')}"
    return METHODS.get(method, method.replace("_", " "))


def capital(sentence: str) -> str:
    """Begin with a capital letter and leave the rest alone."""
    return sentence[:1].upper() + sentence[1:]


def listing(items: Sequence[str]) -> str:
    """Join words as in a sentence: a, b and c."""
    return " and ".join([*([", ".join(items[:-1])] if len(items) > 1 else []), *items[-1:]])
