"""How data and training are described in the reports of all experiments that train the lab's networks."""

from __future__ import annotations

from steadynorm.lab.records import Record
from steadynorm.lab.report.quantities import rate
from steadynorm.lab.report.wording import batches_label, data_label, listing

__all__ = ["class_count", "data_method", "schedule", "training_method"]


def data_method(record: Record) -> str:
    """Say which images there are, and which network sees them."""
    resolved, config = record.resolved, record.config
    return (
        f"Data: {data_label(record)}, {resolved['train_images']:,} training and {resolved['validation_images']:,} "
        f"validation images in {class_count(record)} classes; augmentation: {config['augment']}. Network: "
        f"{config['network']}, the same for every arm except for its normalization layers."
    )


def training_method(record: Record) -> tuple[str, str]:
    """Say how networks are trained and when they are judged, in two paragraphs."""
    config, resolved = record.config, record.resolved
    augmented = ", and on augmented images" if config["augment"] != "none" else ""
    return (
        f"Training: SGD with momentum {config['momentum']} and weight decay {config['weight_decay']}, "
        f"{batches_label(record)}, {schedule(record)}. It ran on {resolved['device']} in {resolved['precision']}"
        f"{_workers(record)}.",
        f"Training loss and accuracy are measured during the epoch, while the weights move{augmented}; validation "
        "follows the epoch, in evaluation mode. That is why validation can be ahead of training.",
    )


def _workers(record: Record) -> str:
    workers = record.resolved.get("workers", 1)  # older records do not have it
    if workers == 1:
        return ""
    return (
        f", on {workers} workers that share each batch evenly. Batch norm normalizes each worker's part by itself, "
        "where it is not synchronised; running statistics are merged before every evaluation"
    )


def schedule(record: Record) -> str:
    """Describe the learning rate over time."""
    lr, milestones = record.config["lr"], [str(epoch) for epoch in record.config["milestones"]]
    which = (
        f"learning rates {listing([rate(one) for one in lr])}" if isinstance(lr, list) else f"learning rate {rate(lr)}"
    )
    if not milestones:
        return f"{which} throughout"
    return f"{which}, divided by ten after epoch {listing(milestones)}"


def class_count(record: Record) -> int:
    """Count the classes, whether the record names or counts them."""
    classes = record.resolved["classes"]
    return classes if isinstance(classes, int) else len(classes)
