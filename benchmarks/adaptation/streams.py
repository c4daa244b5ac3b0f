"""The streams that every network is shown: which images, how corrupted, in which order and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.adaptation.networks import Half, Split
from steadynorm.lab.data import Images, first, take
from steadynorm.lab.data.corruptions import corrupt
from steadynorm.lab.data.streams import stream

__all__ = ["CLEAN", "Shown", "streams"]

IMAGES, LONG, SINGLE, BATCH, SEVERITY = 500, 1000, 150, 100, 5
CLEAN = "clean"
CORRUPTIONS: dict[Half, tuple[str, ...]] = {
    "tuning": (
        "gaussian_noise",
        "fog",
        "contrast",
        "brightness",
        "jpeg_compression",
        "impulse_noise",
        "motion_blur",
        "pixelate",
        "saturate",
    ),
    "held out": ("shot_noise", "defocus_blur", "gaussian_blur", "zoom_blur", "fog", "contrast"),
}
"""The held-out half's first four have not been seen while methods were designed; its last two are the hardest."""
ORDERED: dict[Half, tuple[str, ...]] = {
    "tuning": ("gaussian_noise", "fog", "contrast", "motion_blur"),
    "held out": ("shot_noise", "zoom_blur", "contrast"),
}
"""Of these streams in which classes come in runs."""
SMALL: dict[Half, tuple[str, ...]] = {"tuning": ("fog", "motion_blur"), "held out": ("defocus_blur",)}
"""Of these streams of small batches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """One stream.

    Args:
        kind: how the images arrive.
        shift: what is done to them.
        inputs: float32, shape (N, 3, 32, 32), in the order in which they come.
        labels: shape (N,).
        batch: images that come together.
    """

    kind: str
    shift: str
    inputs: Tensor
    labels: Tensor
    batch: int


def streams(split: Split, half: Half, seed: int) -> Iterator[Shown]:
    """Yield all streams of a data set: the same for each network of a half and seed."""
    plain, long = (_test_images(split, seed, count) for count in (IMAGES, LONG))

    @cache
    def images(shift: str, *, runs: bool = False) -> Images:
        chosen = long if runs else plain
        return chosen if shift == CLEAN else corrupt(chosen, shift, severity=SEVERITY, seed=seed)

    def show(kind: str, shift: str, order: Tensor, batch: int = BATCH, *, runs: bool = False) -> Shown:
        return _shown(split, kind, shift, take(images(shift, runs=runs), order), batch)

    every = torch.arange(len(plain))
    for shift in (CLEAN, *CORRUPTIONS[half]):
        yield show("mixed", shift, every)
    for kind in ("class_ordered", "bursts"):
        order = torch.cat(stream(long.labels, kind, batch_size=BATCH, seed=seed))
        for shift in (CLEAN, *ORDERED[half]):
            yield show(kind, shift, order, runs=True)
    for shift in (CLEAN, *ORDERED[half]):
        yield _single_class(split, shift, seed)
    changing = [take(images(shift), rows) for shift, rows in _parts(every, (CLEAN, *ORDERED[half]))]
    yield _shown(split, "changing", "in turn", _joined(changing), BATCH)
    for shift in (CLEAN, *SMALL[half]):
        yield show("mixed, batches of 10", shift, every, 10)
        yield show("one by one", shift, every[:SINGLE], 1)
    yield show("mixed, batches of 50", SMALL[half][0], every, 50)


def _test_images(split: Split, seed: int, number: int) -> Images:
    """Return other test images for each seed, where there are so many."""
    count = len(split.test)
    return take(split.test, (torch.arange(min(number, count)) + seed * number) % count)


def _parts(every: Tensor, shifts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield each shift its part of the stream."""
    yield from zip(shifts, every.tensor_split(len(shifts)), strict=True)


def _single_class(split: Split, shift: str, seed: int) -> Shown:
    (rows,) = stream(split.test.labels, "single_class", batch_size=len(split.test), seed=seed)
    images = first(take(split.test, rows), IMAGES)
    images = images if shift == CLEAN else corrupt(images, shift, severity=SEVERITY, seed=seed)
    return _shown(split, "single_class", shift, images, BATCH)


def _joined(parts: Sequence[Images]) -> Images:
    return Images.of_rows(torch.cat([each.rows for each in parts]), torch.cat([each.labels for each in parts]))


def _shown(split: Split, kind: str, shift: str, images: Images, batch: int) -> Shown:
    return Shown(kind=kind, shift=shift, inputs=split.inputs(images), labels=images.labels, batch=batch)
