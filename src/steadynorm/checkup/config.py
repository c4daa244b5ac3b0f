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
"""Batches that a treatment takes at most."""
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

    The exit status is 0 where nothing worse than a note is found, 1 where something is, 2 where it cannot be done.
    """

    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")] = (
        None
    )
    """A checkpoint of an experiment, or a function that builds a model; one in training mode is judged as one that is
    being trained."""
    weights: Path | None = None
    """Weights for a built model: .safetensors, what torch.save wrote (a state dict, or a checkpoint that holds one), or
    a folder of either; no pickled code is run. Default: as it is built."""
    weights_key: str | None = None
    """Where in that file they are, such as ema; default: found by the model's names."""
    code: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE.MODULE:NAME")] = ()
    """Functions and classes that a checkpoint may call, where its network or its normalization is one of your own."""
    checkpoint: Path | None = None
    """A file that the model should agree with, in any form of --weights; differences are reported, and --treat loads
    it."""
    checkpoint_key: str | None = None
    """Where in that file it is; default: found by the model's names."""
    data: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Training images of cifar10, shapes, digits or another data set of a name; a directory with a folder of images for
    each class, or other data that experiments take; or an .npz file with x and, for accuracy, y. Default: none; the
    checks of modules and their state alone run."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="cifar10|DIR|FILE")] = None
    """Data as for --data that the model is known to be good on, such as those it was validated with; --data are
    compared with them."""
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
    batch_size: int = 64
    """Samples in a batch; give the one that the model is trained with."""
    batches: int = 8
    """Checks look at the first 8 of them, --treat at 32."""
    accumulation: int | None = None
    """Batches whose gradients one step of training adds up."""
    world_size: int | None = None
    """Processes that train together, each with batches of --batch-size."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="PACKAGE.MODULE:FUNCTION")] = None
    """A function that is called with the model and returns its optimizer; its weight decay is checked."""
    seed: int = 0
    """Decides which samples are taken."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    skip: tuple[str, ...] = ()
    """Checks to leave out, by name."""
    treat: Path | None = None
    """Repair what can be repaired, measure again, keep what helped, and write the weights into this new .safetensors
    file; the exit status is then that of a new model built with them."""
    json: tuple[Path, ...] | None = None
    """Write the diagnosis as JSON into a file; without a name on standard output, in place of the table."""
    sarif: Path | None = None
    """Write the diagnosis as SARIF 2.1.0 into this file."""
    html: Path | None = None
    """Write the diagnosis as a web page into this file."""
    explain: str | None = None
    """Print what a check looks at, why that harms, and what to do; then end."""
    list: bool = False
    """Print the name of every check, what it finds and what it needs; then end."""


def check_config(config: DoctorConfig) -> str:
    """Check the flags, and give the source.

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
    """Check what is to be done to images.

    Raises:
        UserError: a number is out of range.
    """
    if input_size is not None and min(input_size) < 1:
        raise UserError(f"--input-size: must be at least 1, got {' '.join(map(str, input_size))}.")
    if std is not None and (not std or min(std) <= 0):
        raise UserError("--std: must be numbers above 0.")
    if mean is not None and not mean:
        raise UserError("--mean: must be numbers.")
