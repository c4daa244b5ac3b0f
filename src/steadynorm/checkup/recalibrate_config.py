"""The options of ``steadynorm recalibrate``, and which of them are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steadynorm.checkup.config import check_pixels
from steadynorm.checkup.saved import check_target
from steadynorm.lab.configuration import check_at_least
from steadynorm.reporting.failure import UserError

__all__ = ["RecalibrateConfig", "check_recalibrate"]


@dataclass(frozen=True, kw_only=True)
class RecalibrateConfig:
    """Measure the running statistics of a model again on training images, and write its weights with the new ones.

    For weights that do not match their statistics: an average of weights (EMA, SWA), weights fine-tuned with frozen
    statistics, or a file without statistics. Nothing is trained. The exit status is 0, or 2 after an error.
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
    save: Path | None = None
    """Write the weights and the new statistics, in float32, to this new .safetensors file, under the model's own
    names."""
    data: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Training images: cifar10, shapes, digits or another named data set; a directory with a folder of images for each
    class, or of images only; other data that experiments take; or an .npz file with x and, for accuracy, y."""
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
    images: int = 1000
    """Images to measure the statistics on, drawn at random."""
    batch_size: int = 100
    """Images that pass through the model at once; the statistics are those of all images."""
    seed: int = 0
    """Decides which images are drawn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    json: tuple[Path, ...] | None = None
    """Write the result as JSON to this file; --json without a file prints it in place of the table."""


def check_recalibrate(config: RecalibrateConfig) -> tuple[str, str, Path]:
    """Check the flags, and return the source, the data and the file to write.

    Raises:
        UserError: something is missing, out of range, or would do nothing.
    """
    if config.source is None:
        raise UserError("give the model: PACKAGE.MODULE:FUNCTION that builds it, or a checkpoint.")
    if config.data is None:
        raise UserError("--data: give training images: cifar10, a directory of images, or an .npz file.")
    if config.save is None:
        raise UserError("--save: give the new .safetensors file to write.")
    check_target(config.save, "--save")
    check_at_least(config, [("images", 2), ("batch_size", 1), ("seed", 0)])
    check_pixels(config.mean, config.std, config.input_size)
    if config.weights_key is not None and config.weights is None:
        raise UserError("--weights-key: says where to look in a file. Give the file by --weights.")
    if config.json is not None and len(config.json) > 1:
        raise UserError(f"--json: must be one file, got {len(config.json)}. Give the model before the flags.")
    return config.source, config.data, config.save
