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
    """Measure the running statistics of a model again on training images, and write its weights with them.

    For weights whose statistics are not theirs: an average of weights (EMA, SWA), weights fine-tuned with frozen
    statistics, or a file that holds none. Nothing is trained. The exit status is 0, or 2 where it cannot be done.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")] = (
        None
    )
    """A checkpoint of an experiment, or a function that builds a model."""
    weights: Path | None = None
    """Weights for a built model: .safetensors, what torch.save wrote, or a folder of either; no pickled code is run."""
    weights_key: str | None = None
    """Where in that file they are, such as ema; default: found by the model's names."""
    code: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE.MODULE:NAME")] = ()
    """Functions and classes that a checkpoint may call, where its network or its normalization is one of your own."""
    save: Path | None = None
    """Write the weights with the new statistics into this new .safetensors file, by the model's names, in float32."""
    data: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Training images: of cifar10, shapes, digits or another data set of a name; a directory with a folder of images
    for each class, or images alone, or other data that experiments take; or an .npz file with x and, for accuracy,
    y."""
    data_dir: Path | None = None
    """Where a data set of a name lies, as for an experiment."""
    columns: tuple[str, str] | None = None
    """Names of the images and of the labels among the columns of a table or the arrays of an .npz file; default: those
    that are usual."""
    mean: tuple[float, ...] | None = None
    """Subtracted from pixels in [0, 1], by channel; default: of the run that a checkpoint is of, else the data set's,
    ImageNet's for image files."""
    std: tuple[float, ...] | None = None
    """What the centred pixels are divided by; default likewise."""
    input_size: tuple[int, int] | None = None
    """Height and width of the images; default: of the run that a checkpoint is of, else what they have,
    224 224 for image files."""
    images: int = 1000
    """Images that the statistics are measured on, drawn at random."""
    batch_size: int = 100
    """Images that go through the model together; statistics are those of all of them."""
    seed: int = 0
    """Decides which images are drawn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    json: tuple[Path, ...] | None = None
    """Write what was done as JSON into a file; without a name on standard output, in place of the table."""


def check_recalibrate(config: RecalibrateConfig) -> tuple[str, str, Path]:
    """Check the flags, and give the source, the data and the file to write.

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
