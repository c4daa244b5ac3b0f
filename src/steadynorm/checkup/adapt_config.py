"""The options of ``steadynorm adapt``, and which of them are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steadynorm.checkup.config import check_pixels
from steadynorm.checkup.saved import check_target
from steadynorm.lab.configuration import check_at_least
from steadynorm.reporting.failure import UserError

__all__ = ["AdaptConfig", "check_adapt"]


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Predict a stream of batches with stored, batch or tracked statistics, as the gate decides, and report the result.

    If there are labels, the accuracy is measured with the gate and without it. The exit status is 0, or 2 after an
    error.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")] = (
        None
    )
    """A checkpoint of an experiment, or a function that builds a model."""
    weights: Path | None = None
    """Weights to load into the model that the function builds: .safetensors, a file of torch.save, or a folder of
    either; no pickled code is run."""
    weights_key: str | None = None
    """Key of the weights in that file, such as ema; default: found by the names of the model's parameters."""
    code: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE.MODULE:NAME")] = ()
    """Functions and classes that a checkpoint may call, if its network or normalization is your own."""
    data: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """The stream: validation images of cifar10, shapes, digits or another named data set; a directory with a folder of
    images for each class, or of images only; other data that experiments take; or an .npz file with x and, for
    accuracy, y."""
    clean: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Labelled data that the model is good on and was not trained on; they calibrate the gate. Default: up to 1,000
    random samples of --data, which are then left out of the stream."""
    gate: Path | None = None
    """A file that --save wrote: continue with its gate, without calibrating one."""
    save: Path | None = None
    """Write the gate, and what it remembers of the stream, to this new .safetensors file."""
    data_dir: Path | None = None
    """Directory of a named data set, as for an experiment."""
    columns: tuple[str, str] | None = None
    """Names of the images and the labels: columns of a table, or arrays of an .npz file; default: the usual names."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, subtracted from pixels in [0, 1]; default: that of the checkpoint's run, else the data
    set's, or ImageNet's for image files."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, which the centred pixels are divided by; default: as for --mean."""
    input_size: tuple[int, int] | None = None
    """Height and width of the images; default: those of the checkpoint's run, else the images' own, or 224 224 for
    image files."""
    order: Literal["given", "mixed"] | None = None
    """given: in the order of the data; mixed: shuffled. Default: mixed for a directory with a folder for each class,
    whose classes would come one after the other; else given."""
    batch_size: int = 100
    """Samples that are predicted together."""
    batches: int | None = None
    """Batches to take from the stream at most; default: all."""
    seed: int = 0
    """Decides what is drawn at random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    json: tuple[Path, ...] | None = None
    """Write the decisions as JSON to this file; --json without a file prints them in place of the table."""


def check_adapt(config: AdaptConfig) -> tuple[str, str]:
    """Check the flags, and return the source and the data.

    Raises:
        UserError: something is missing, out of range, or would do nothing.
    """
    if config.source is None:
        raise UserError("give the model: PACKAGE.MODULE:FUNCTION that builds it, or a checkpoint.")
    if config.data is None:
        raise UserError("--data: give the stream: cifar10, a directory of images, or an .npz file.")
    lowest = {"batch_size": 1, "seed": 0} | ({} if config.batches is None else {"batches": 1})
    check_at_least(config, list(lowest.items()))
    check_pixels(config.mean, config.std, config.input_size)
    if config.weights_key is not None and config.weights is None:
        raise UserError("--weights-key: says where to look in a file. Give the file by --weights.")
    if config.gate is not None and config.clean is not None:
        raise UserError("--clean: calibrates a new gate, and --gate loads a calibrated one. Drop one of them.")
    if config.save is not None:
        check_target(config.save, "--save")
    if config.json is not None and len(config.json) > 1:
        raise UserError(f"--json: must be one file, got {len(config.json)}. Give the model before the flags.")
    return config.source, config.data
