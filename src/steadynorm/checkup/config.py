"""The options of ``steadynorm doctor``, and which of them are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steadynorm.checkup.saved import check_target
from steadynorm.deploy.source import is_built
from steadynorm.doctor import CHECKS
from steadynorm.lab.configuration import check_at_least
from steadynorm.reporting.failure import UserError, check_known

__all__ = ["DoctorConfig", "check_config", "check_pixels"]

MOST = 32
"""Largest number of batches that a treatment uses."""
NEED_DATA = {
    **dict.fromkeys(("data_dir", "columns", "mean", "std", "input_size"), "how data are read"),
    "reference": "what data are compared with",
    "accumulation": "how many batches a step takes",
    "world_size": "how many processes share a step",
}
"""Flag that means nothing without data -> what it says."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Find faults of normalization in a model, say what they cost and what to do, and repair them.

    The exit status is 0 if nothing worse than a note is found, 1 if something is, and 2 after an error.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")] = (
        None
    )
    """A checkpoint of an experiment, or a function that builds a model; a model in training mode is checked as one that
    is being trained."""
    weights: Path | None = None
    """Weights to load into the model that the function builds: .safetensors, a file of torch.save (a state dict, or a
    checkpoint that holds one), or a folder of either; no pickled code is run. Default: as the model is built."""
    weights_key: str | None = None
    """Key of the weights in that file, such as ema; default: found by the names of the model's parameters."""
    code: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE.MODULE:NAME")] = ()
    """Functions and classes that a checkpoint may call, if its network or normalization is your own."""
    checkpoint: Path | None = None
    """A file that the model should agree with, in any form that --weights takes; differences are reported, and --treat
    loads it."""
    checkpoint_key: str | None = None
    """Key of the weights in that file; default: found by the names of the model's parameters."""
    data: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Training images: cifar10, shapes, digits or another named data set; a directory with a folder of images for each
    class, or other data that experiments take; or an .npz file with x and, for accuracy, y. Default: no data, and only
    the checks of modules and their state run."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Data that the model is known to be good on, such as its validation images, given as for --data; --data are
    compared with them."""
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
    batch_size: int = 64
    """Samples in a batch; give the batch size of the model's training."""
    batches: int = 8
    """Batches to look at. Checks read the first 8, --treat up to 32."""
    accumulation: int | None = None
    """Batches whose gradients are added up in one training step."""
    world_size: int | None = None
    """Processes that train together, each on batches of --batch-size."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="PACKAGE.MODULE:FUNCTION")] = None
    """A function that takes the model and returns its optimizer, whose weight decay is checked."""
    seed: int = 0
    """Decides which samples are taken."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    skip: tuple[str, ...] = ()
    """Checks to leave out, by name."""
    treat: Path | None = None
    """Repair what can be repaired, measure again, keep what helped, and write the weights to this new .safetensors
    file; the exit status is then that of a new model with these weights."""
    json: tuple[Path, ...] | None = None
    """Write the diagnosis as JSON to this file; --json without a file prints it in place of the table."""
    sarif: Path | None = None
    """Write the diagnosis as SARIF 2.1.0 to this file."""
    html: Path | None = None
    """Write the diagnosis as a web page to this file."""
    explain: str | None = None
    """Print what a check looks at, why the fault harms, and what to do; then exit."""
    list: bool = False
    """Print the name of every check, what it finds and what it needs; then exit."""


def check_config(config: DoctorConfig) -> str:
    """Check the flags, and return the source.

    Raises:
        UserError: a number is out of range, there is no source, or a flag would do nothing.
    """
    if config.source is None:
        raise UserError(
            "give the model: PACKAGE.MODULE:FUNCTION that builds it, or a checkpoint; or --explain CHECK, or --list."
        )
    if config.treat is not None:
        check_target(config.treat, "--treat")
    lowest = {"batch_size": 1, "batches": 1, "seed": 0, "accumulation": 1, "world_size": 1}
    check_at_least(config, [(name, least) for name, least in lowest.items() if getattr(config, name) is not None])
    if config.batches > MOST:
        raise UserError(f"--batches: must be at most {MOST}, more are not looked at, got {config.batches}.")
    check_pixels(config.mean, config.std, config.input_size)
    for name in ("weights", "checkpoint"):
        if getattr(config, f"{name}_key") is not None and getattr(config, name) is None:
            raise UserError(f"--{name}-key: says where to look in a file. Give the file by --{name}.")
    if config.optimizer is not None and not is_built(config.optimizer):
        raise UserError(f"--optimizer: must be PACKAGE.MODULE:FUNCTION, got {config.optimizer}.")
    check_known("--skip", config.skip, CHECKS, what="check")
    if config.json is not None and len(config.json) > 1:
        raise UserError(f"--json: must be one file, got {len(config.json)}. Give the model before the flags.")
    for name, why in NEED_DATA.items() if config.data is None else ():
        if getattr(config, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: says {why}. Give data by --data.")
    return config.source


def check_pixels(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, input_size: tuple[int, int] | None
) -> None:
    """Check the flags for image preprocessing.

    Raises:
        UserError: a number is out of range.
    """
    if input_size is not None and min(input_size) < 1:
        raise UserError(f"--input-size: must be at least 1, got {' '.join(map(str, input_size))}.")
    if std is not None and (not std or min(std) <= 0):
        raise UserError("--std: must be numbers above 0.")
    if mean is not None and not mean:
        raise UserError("--mean: must be numbers.")
