"""What an export can be told, and what is refused of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from steadynorm.deploy.formats import FORMATS
from steadynorm.lab.configuration import check_at_least
from steadynorm.lab.failure import UserError
from steadynorm.lab.records import read_config

__all__ = ["ExportConfig", "check_config", "chosen_formats", "with_data"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Fold, export and quantise a trained model, prove that the files answer as it does, and time them beside it.

    Every file is read again in a fresh process that cannot import steadynorm.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")]
    """A checkpoint of an experiment, or a function that builds a model in evaluation mode."""
    weights: Path | None = None
    """State dict for a built model, .safetensors or torch.save's; default: as it is built."""
    format: tuple[Literal["torchscript", "torch-export", "aotinductor", "onnx"], ...] | None = None
    """Default: every one that this machine can write."""
    quantize: tuple[Literal["none", "dynamic", "static"], ...] = ("none", "dynamic", "static")
    """dynamic: linear layers in int8; static: convolutions too. Each where the format has it."""
    input_size: tuple[int, int] = (32, 32)
    """Height and width of the images; those of --data are scaled to it."""
    target_p50_ms: float | None = None
    """Exit with status 1 unless half of the requests to the best file end within so many milliseconds."""
    max_drop: float = 1.0
    """Percentage points of accuracy that quantising may cost; a file that loses more is not kept."""
    data: Literal["shapes", "cifar10"] | None = None
    """Images for calibration and comparison; default: those that the checkpoint was trained on, else shapes."""
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
    for name in config.format or ():
        why = FORMATS[name].absent()
        if why:
            raise UserError(f"--format {name}: {why}")
    if not any(way in FORMATS[name].writers for name in chosen_formats(config) for way in config.quantize):
        name, way = chosen_formats(config)[0], config.quantize[0]
        raise UserError(f"--quantize {way}: {FORMATS[name].title} has none: {FORMATS[name].lacking[way]}")


def with_data(config: ExportConfig) -> ExportConfig:
    """Settle which images are used: those that were asked for, else those of the run that a checkpoint lies in."""
    if config.data is not None:
        return config
    run = Path(config.source).parent.parent
    try:
        trained = read_config(run).config
    except UserError:  # no run directory: a built model, or a checkpoint that was copied
        return replace(config, data="shapes")
    kept = trained.get("data_dir")
    place = config.data_dir or (None if kept is None else Path(kept))
    return replace(config, data=trained["data"], data_dir=place)


def chosen_formats(config: ExportConfig) -> list[str]:
    """Give the names of the formats to write."""
    return list(dict.fromkeys(config.format or ())) or [name for name, one in FORMATS.items() if not one.absent()]
