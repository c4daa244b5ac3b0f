"""Sentences on how networks are trained and evaluated: those that all reports share, and an experiment's own.

An experiment's own are templates such as ``trained for {epochs} on {data} at rate {lr}``, which :func:`sentences` and
:func:`method_of` fill from the record.
"""

from __future__ import annotations

from typing import Any

from steadynorm.lab.describe.names import arm_label, data_label
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.numbers import percent, points, rate
from steadynorm.reporting.records import Record, StoredFields
from steadynorm.reporting.words import counted, listing, seeds_label

__all__ = [
    "batches_label",
    "class_count",
    "data_sentence",
    "data_words",
    "method_of",
    "paragraphs",
    "sentences",
    "word",
]

SINGULAR = {"arms": "normalization", "lr": "learning rate"}
"""Names for the values of fields, if they differ from the field's name."""
DATA = """
Data: {data}, {train_images} training and {validation_images} validation images{images} in {classes} classes;
augmentation: {augment}.{guessing} Network: {network}, the same for every arm except for its normalization layers. A
seed decides the initial weights, the order of the images and their augmentation, alike in every arm.
"""
ALONE = """
Data: {data}, {train_images} training and {validation_images} validation images{images} in {classes} classes.{guessing}
"""
COARSE = 0.002
"""Share of the validation images from which on the report mentions one of them: accuracies are multiples of it."""
UNEQUAL = 1.1
"""Share of the most frequent class, in shares of equal classes, from which on the report mentions it."""
TRAINING = """
Training: {optimizer}, {batches}, {schedule}{smoothed}. It ran on {device} in {precision}{compiled}{workers}.

Training loss and accuracy are measured during the epoch, while the weights move{augmented}; validation follows the
epoch, in evaluation mode{plain}. That is why validation can be ahead of training.
"""
OPTIMIZERS = {
    "sgd": "SGD with momentum {momentum} and weight decay {weight_decay}",
    "adamw": "AdamW (Loshchilov & Hutter 2019; β 0.9 and 0.999, ε 1e-8) with decoupled weight decay {weight_decay}",
}
SCHEDULES = {
    "cosine": "lowered at every step along a half cosine, to zero (Loshchilov & Hutter 2017)",
    "one-cycle": "reached from its 25th part in three tenths of the steps and lowered along a half cosine, to zero, in "
    "the rest (Smith & Topin 2018; momentum stays)",
}
SMOOTHED = ", label smoothing {label_smoothing} (Szegedy et al. 2016)"
SHARED = """
, on {workers} workers that share each batch evenly. Batch norm normalizes each worker's part by itself, where it is
not synchronised; running statistics are merged before every evaluation
"""


def sentences(record: Record, text: str, **own: object) -> str:
    """Fill a paragraph with fields of the configuration and of the record, written as in a sentence.

    Args:
        record: record of the experiment.
        text: text with the names of fields in braces; ``{epochs}`` is counted, ``{seeds}`` says how many there are, and
            ``{arms_count}`` counts the values of a field that holds several.
        own: further or other values.

    Raises:
        UserError: the record does not have a field.
    """
    config: dict[str, Any] = {**record.config, **record.resolved}
    words = {name: word(value) for name, value in config.items()} | {"data": data_label(record)}
    lists = {name: value for name, value in config.items() if isinstance(value, list)}
    words |= {f"{name}_count": counted(len(values), _singular(name)) for name, values in lists.items()}
    if "seeds" in config:
        words |= {"seeds": seeds_label(len(config["seeds"]))}
    if "epochs" in config:
        words |= {"epochs": counted(config["epochs"], "epoch")}
    words |= {name: word(value) for name, value in own.items()}
    return " ".join(text.split()).format_map(StoredFields(words))


def _singular(name: str) -> str:
    return SINGULAR.get(name, name.removesuffix("s").replace("_", " "))


def word(value: Any) -> str:  # noqa: ANN401 (a field of any type)
    """Write the value of a field as in a sentence."""
    if isinstance(value, list):
        return listing([word(one) for one in value])
    if isinstance(value, float):
        return rate(value)
    return f"{value:,}" if type(value) is int else str(value)


def paragraphs(record: Record, text: str, **own: object) -> list[str]:
    """Fill paragraphs, separated by blank lines; drops empty ones."""
    return [filled for one in text.split("\n\n") if (filled := sentences(record, one, **own))]


def method_of(record: Record, text: str, **own: object) -> list[str]:
    """Describe how networks are trained and evaluated, then add the paragraphs of ``text``; see :func:`sentences`."""
    workers = record.resolved.get("workers", 1)  # older records lack it, and the values read with get
    is_smoothed = record.config.get("label_smoothing", 0) > 0
    shared = {
        **data_words(record),
        "batches": batches_label(record),
        "optimizer": sentences(record, OPTIMIZERS[record.config.get("optimizer", "sgd")]),
        "schedule": _schedule(record),
        "augmented": ", and on augmented images" if record.config["augment"] != "none" else "",
        "smoothed": sentences(record, SMOOTHED) if is_smoothed else "",
        "plain": " and to labels that are not smoothed" if is_smoothed else "",
        "compiled": ", compiled by torch.compile" if record.config.get("compile") else "",
        "workers": "" if workers == 1 else sentences(record, SHARED),
    }
    made = [f"{arm_label(arm)}: {how}" for arm, how in record.resolved.get("arms_made", {}).items()]
    last = [f"How the arms were made of the network that was given: {'; '.join(made)}."] if made else []
    return [*paragraphs(record, f"{DATA}\n\n{TRAINING}", **shared), *paragraphs(record, text, **own), *last]


def data_words(record: Record) -> dict[str, object]:
    """Describe the classes, the images, and limits of accuracies on them."""
    return {"classes": class_count(record), "images": _images_label(record), "guessing": _guessing(record)}


def data_sentence(record: Record) -> str:
    """Describe the data; empty for records that do not describe their images."""
    return sentences(record, ALONE, **data_words(record)) if _images_label(record) else ""


def _images_label(record: Record) -> str:
    """Describe size and color of the images, after their name; empty for records without them."""
    size, channels = record.resolved.get("image_size"), record.resolved.get("channels")
    if not size or not channels:
        return ""
    color = {1: "in one channel", 3: "in color"}.get(channels, f"in {channels} channels")
    return f" of {size[0]} x {size[1]} pixels {color}"


def _guessing(record: Record) -> str:
    """Describe what guessing reaches if classes are unequal, and the weight of one image if there are few."""
    chance, one = chance_of(record), 1 / int(record.resolved["validation_images"])
    unequal, coarse = chance.share * class_count(record) >= UNEQUAL, one >= COARSE
    frequent = f" Guessing is right on {percent(chance.share)}, the validation images of the most frequent class."
    hopeless = "" if chance.is_beatable else " No accuracy on so few images of so unequal classes is surely above it."
    return frequent * unequal + hopeless + f" One validation image is {points(one)} of accuracy." * coarse


def batches_label(record: Record) -> str:
    """Describe how many images are normalized together, and how many such batches a step averages."""
    size, together = record.config["batch_size"], record.config.get("accumulate", 1)  # only few experiments have it
    size = listing([str(one) for one in size]) if isinstance(size, list) else size
    return f"batches of {size}" if together == 1 else f"batches of {size}, {together} to a step"


def class_count(record: Record) -> int:
    """Count the classes, whether the record names or counts them."""
    classes = record.resolved["classes"]
    return classes if isinstance(classes, int) else len(classes)


def _schedule(record: Record) -> str:
    """Describe the learning rate over time."""
    lr, schedule = record.config["lr"], record.config.get("schedule", "step")
    milestones = [str(epoch) for epoch in record.config["milestones"]]
    which = f"learning rate{'s' if isinstance(lr, list) and len(lr) > 1 else ''} {word(lr)}"
    if schedule in SCHEDULES:
        return f"{which}, {SCHEDULES[schedule]}"
    return f"{which}, divided by ten after epoch {listing(milestones)}" if milestones else f"{which} throughout"
