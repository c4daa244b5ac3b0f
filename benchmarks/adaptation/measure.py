"""Show every stream to every network, by every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.adaptation.networks import NETWORKS, Half, Network, load_split, trained
from benchmarks.adaptation.streams import Shown, streams
from steadynorm.adaptation import ADAPTATIONS, Adaptation, calibrate

__all__ = ["Row", "measured"]

CALIBRATION_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one stream of one network.

    Args:
        half: whether a method may have been designed on the network.
        network: its name.
        family: of its architecture.
        seed: of its training, and of the stream.
        kind: how images arrive.
        shift: what is done to them.
        images: in the stream.
        batch: images that come together.
        method: one of ADAPTATIONS.
        accuracy: share of images that are predicted right, each batch before the next is seen.
        seconds: that the method took.
    """

    half: Half
    network: str
    family: str
    seed: int
    kind: str
    shift: str
    images: int
    batch: int
    method: str
    accuracy: float
    seconds: float


def measured(
    half: Half,
    seeds: Sequence[int],
    methods: Sequence[str],
    *,
    data_dir: Path | None,
    folder: Path,
    only: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Row]:
    """Measure the networks of a half, or those of ``only``."""
    for seed in seeds:
        for network in NETWORKS.values():
            if network.half != half or (only and network.name not in only):
                continue
            started = time.perf_counter()
            yield from _network(network, seed, methods, data_dir, folder)
            tell(f"{network.name}, seed {seed}: {time.perf_counter() - started:.0f} s")


def _network(network: Network, seed: int, methods: Sequence[str], data_dir: Path | None, folder: Path) -> Iterator[Row]:
    split = load_split(network.source, data_dir)
    model = trained(network, seed, split, folder)
    clean = split.inputs(split.calibration).split(CALIBRATION_BATCH)
    labels = split.calibration.labels.split(CALIBRATION_BATCH)
    calibration = calibrate(model, list(zip(clean, labels, strict=True)), mirrors=False)
    for shown in streams(split, network.half, seed):
        for method in methods:
            accuracy, seconds = _judged(ADAPTATIONS[method](calibration), model, shown)
            yield Row(
                half=network.half,
                network=network.name,
                family=network.family,
                seed=seed,
                kind=shown.kind,
                shift=shown.shift,
                images=len(shown.labels),
                batch=shown.batch,
                method=method,
                accuracy=accuracy,
                seconds=seconds,
            )


def _judged(adaptation: Adaptation, model: nn.Module, shown: Shown) -> tuple[float, float]:
    """Return the accuracy on the stream, and the seconds."""
    hits, started = 0, time.perf_counter()
    for x, labels in zip(shown.inputs.split(shown.batch), shown.labels.split(shown.batch), strict=True):
        hits += int((adaptation.predict(model, x).argmax(1) == labels).sum())
    return hits / len(shown.labels), time.perf_counter() - started
