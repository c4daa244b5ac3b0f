"""What an export can be told, and what is refused of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from steadynorm.deploy.formats import FORMATS
from steadynorm.deploy.source import is_built
from steadynorm.lab.configuration import check_at_least
from steadynorm.lab.data import check_data_dir
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import read_config

__all__ = ["ExportConfig", "check_config", "chosen_formats", "is_own_data", "with_data"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Fold, export and quantise a trained model, prove that the files answer as it does, and time them beside it.

    Every file is read again in a fresh process that cannot import steadynorm.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")]
    """A checkpoint of an experiment, or a function that builds a model in evaluation mode."""
    weights: Path | None = None
    """Weights for a built model: .safetensors, or what torch.save wrote (a state dict, or a checkpoint that holds one);
    no pickled code is run. Default: as it is built."""
    weights_key: str | None = None
    """Where in that file they are, such as ema; default: found by the model's names."""
    format: tuple[Literal["torchscript", "torch-export", "aotinductor", "onnx"], ...] | None = None
    """Default: every one that this machine can write."""
    quantize: tuple[Literal["none", "dynamic", "static"], ...] = ("none", "dynamic", "static")
    """dynamic: linear layers in int8; static: convolutions too. Each where the format has it."""
    input_size: tuple[int, int] = (32, 32)
    """Height and width of the images; those of --data are scaled to it."""
    target_p50_ms: float | None = None
    """Exit with status 1 unless half of the requests to the best file end within so many milliseconds."""
    max_drop: float = 1.0
    """Percentage points of accuracy (without one: of images that get another class than from the model) that quantising
    may cost; a file that loses more is not kept."""
    data: Literal["shapes", "cifar10"] | None = None
    """Images for calibration and comparison; default: those that the checkpoint was trained on, else shapes, on which
    no accuracy is measured, since their classes are not the model's."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies, as for an experiment; default: where it lay in training, else the Hugging Face hub."""
    images: int = 1000
    """Validation images on which a file is compared with the model."""
    calibration_images: int = 256
    """Training images for static quantisation."""
    requests: int = 500
    """Timed requests of one image to each file."""
    batch_size: tuple[int, ...] = (1, 8, 64)
    """Images in a request, for the throughput."""
    threads: int | None = None
    """Of a request; default: all cores."""
    out: Path | None = None
    """New directory for everything that is written; default: runs/export-DATE-TIME."""
    json: bool = False
    """Print the summary as JSON on standard output."""


def check_config(config: ExportConfig) -> None:
    """Refuse flags that ask for nothing that can be done.

    Raises:
        UserError: so they do.
    """
    check_at_least(config, (("images", 2), ("calibration_images", 2), ("requests", 1)))
    if config.threads is not None:
        check_at_least(config, (("threads", 1),))
    for name, values in (("--input-size", config.input_size), ("--batch-size", config.batch_size)):
        if not values or min(values) < 1:
            raise UserError(f"{name}: must be at least 1, got {' '.join(map(str, values)) or 'nothing'}.")
    for name, value in (("--target-p50-ms", config.target_p50_ms), ("--max-drop", config.max_drop)):
        if value is not None and not value >= 0:
            raise UserError(f"{name}: must be at least 0, got {value}.")
    if config.weights_key is not None and config.weights is None:
        raise UserError("--weights-key: says where in a file of weights they are. Give the file by --weights.")
    for name in config.format or ():
        why = FORMATS[name].absent()
        if why:
            raise UserError(f"--format {name}: {why}")
    if not any(way in FORMATS[name].writers for name in chosen_formats(config) for way in config.quantize):
        name, way = chosen_formats(config)[0], config.quantize[0]
        raise UserError(f"--quantize {way}: {FORMATS[name].title} has none: {FORMATS[name].lacking[way]}")


def with_data(config: ExportConfig) -> ExportConfig:
    """Settle which images are used: those that were asked for, else those of the run that a checkpoint lies in.

    Raises:
        UserError: --data-dir would not be read.
    """
    trained = _trained_on(config)
    if config.data is None and trained is None:
        config = replace(config, data="shapes")
    elif config.data is None and trained is not None:
        kept = trained.get("data_dir")
        place = config.data_dir or (None if kept is None else Path(kept))
        config = replace(config, data=trained["data"], data_dir=place)
    assert config.data is not None
    check_data_dir(config.data, config.data_dir)
    return config


def is_own_data(config: ExportConfig) -> bool:
    """Tell whether the images are of the model's classes: it was trained on them, or the user chose them for it."""
    trained = _trained_on(config)
    return config.data is not None if trained is None else config.data in (None, trained["data"])


def _trained_on(config: ExportConfig) -> Mapping[str, Any] | None:
    """Give the configuration of the run that a checkpoint lies in; None for a built model and a copied checkpoint."""
    if is_built(config.source):
        return None
    try:
        trained = read_config(Path(config.source).parent.parent).config
    except (UserError, OSError):
        return None
    return trained if "data" in trained else None


def chosen_formats(config: ExportConfig) -> list[str]:
    """Give the names of the formats to write."""
    return list(dict.fromkeys(config.format or ())) or [name for name, one in FORMATS.items() if not one.absent()]
