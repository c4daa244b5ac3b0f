"""``steadynorm export``: its options, and the export of a model on images of the lab."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from steadynorm.deploy.pipeline import export, plans
from steadynorm.deploy.readiness import check_ready
from steadynorm.deploy.results import write_outcome
from steadynorm.deploy.source import as_logits, load_source, trained_on
from steadynorm.lab.configuration import check_at_least
from steadynorm.lab.data import Dataset, Images, check_data_dir, evaluation_batches, load_dataset, some, user_function
from steadynorm.lab.experiment import new_place
from steadynorm.lab.machine import choose_threads
from steadynorm.reporting.chance import most_frequent
from steadynorm.reporting.environment import describe_machine, describe_versions
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import as_config, command_of
from steadynorm.reporting.place import new_directory
from steadynorm.reporting.progress import Display
from steadynorm.reporting.records import Record, write_config

__all__ = ["ExportConfig", "check_config", "run_export", "with_data"]

OPTIONS = ("--format", "--quantize")
PACKAGES = ("torch", "numpy", "safetensors", "torchao", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Fold, export and quantise a trained model, check that the files give its outputs, and time them against it.

    Every file is read again in a fresh process that cannot import steadynorm.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|PACKAGE.MODULE:FUNCTION")]
    """A checkpoint of an experiment, or a function that builds a model in evaluation mode."""
    weights: Path | None = None
    """Weights to load into the model that the function builds: .safetensors, a file of torch.save (a state dict, or a
    checkpoint that holds one), or a folder of either; no pickled code is run. Default: as the model is built."""
    weights_key: str | None = None
    """Key of the weights in that file, such as ema; default: found by the names of the model's parameters."""
    code: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PACKAGE.MODULE:NAME")] = ()
    """Functions and classes that a checkpoint may call, if its network or normalization is your own."""
    format: tuple[Literal["torchscript", "torch-export", "aotinductor", "onnx"], ...] | None = None
    """Formats to write; default: every format that this machine can write."""
    quantize: tuple[Literal["none", "dynamic", "static"], ...] = ("none", "dynamic", "static")
    """dynamic: linear layers in int8; static: convolutions too. Formats that lack one skip it."""
    input_size: tuple[int, int] | None = None
    """Height and width of the images; --data are resized to it. Default: the size that the checkpoint was trained on,
    else 32 32."""
    target_p50_ms: float | None = None
    """Exit with status 1 unless half of the requests to the fastest file take at most this many milliseconds."""
    max_drop: float = 1.0
    """Percentage points of accuracy that quantising may cost (without labels: of images that the model puts into
    another class); a file that loses more is not kept."""
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH|PACKAGE.MODULE:FUNCTION")] = None
    """Images for calibration and comparison, given as for an experiment; default: those that the checkpoint was trained
    on, else shapes, without an accuracy, since their classes are not the model's."""
    data_dir: Path | None = None
    """Directory of a named data set, as for an experiment; default: the one used in training, else the Hugging Face
    hub."""
    columns: tuple[str, str] | None = None
    """Names of the images and the labels, as for an experiment; default: as in training."""
    images: int = 1000
    """Validation images on which the files are compared with the model."""
    calibration_images: int = 256
    """Training images for static quantisation."""
    requests: int = 500
    """Timed requests of one image to each file."""
    batch_size: tuple[int, ...] = (1, 8, 64)
    """Images in a request, to measure the throughput."""
    threads: int | None = None
    """Threads of a request; default: all cores."""
    out: Path | None = None
    """New directory for all output; default: runs/export-DATE-TIME."""
    json: bool = False
    """Print the summary as JSON on standard output."""


def run_export(config: ExportConfig, display: Display) -> Path:
    """Export a model.

    Returns:
        the directory that holds the files and their record; the report is still to be made.

    Raises:
        UserError: it cannot be done; then no directory is left behind.
    """
    check_config(config)
    place = config.out or new_place("export")
    if place.exists() or place.is_symlink():
        raise UserError(f"--out: {place} exists already. Give a new directory.")
    config, is_own = with_data(config)
    assert config.data is not None and config.input_size is not None
    threads = choose_threads(config.threads)
    source = load_source(config.source, weights=config.weights, key=config.weights_key, code=config.code)
    if source.weights:
        display.message(source.weights)
    norms = check_ready(source.model)
    display.message(f"{source.name}: {f'{norms} batch norms, ready for export' if norms else 'no batch norms'}")
    dataset = load_dataset(config.data, **_reading(config), progress=display.message)
    chosen = some(dataset.validation, config.images)
    images = _scaled(chosen, dataset, config.input_size)
    model = as_logits(source.model, images[:2], advice="Give the size it was made for by --input-size.")
    with torch.no_grad():
        outputs = model(images[:1]).shape[1]
    unscored = _why_unscored(dataset, outputs, is_own=is_own)
    if unscored:
        display.message(unscored)
    with new_directory(place, name="--out") as directory:
        outcome = export(
            model,
            images,
            out=directory,
            formats=config.format,
            quantize=config.quantize,
            calibration=_scaled(some(dataset.train, config.calibration_images), dataset, config.input_size),
            labels=None if unscored else chosen.labels,
            max_drop=config.max_drop,
            requests=config.requests,
            batch_sizes=config.batch_size,
            threads=threads,
            progress=display,
        )
        steps = tuple(filter(None, (source.weights, *outcome.steps, unscored)))
        write_outcome(replace(outcome, model=source.name, steps=steps))
        write_config(directory, _record(config, dataset.name, threads=threads, labels=chosen.labels))
    return place


def check_config(config: ExportConfig) -> None:
    """Check the flags.

    Raises:
        UserError: a number is out of range, a format cannot be written here, or flags contradict each other.
    """
    check_at_least(config, (("images", 2), ("calibration_images", 2), ("requests", 1)))
    if config.threads is not None:
        check_at_least(config, (("threads", 1),))
    for name, values in (("--input-size", config.input_size or (1,)), ("--batch-size", config.batch_size)):
        if not values or min(values) < 1:
            raise UserError(f"{name}: must be at least 1, got {' '.join(map(str, values)) or 'nothing'}.")
    for name, value in (("--target-p50-ms", config.target_p50_ms), ("--max-drop", config.max_drop)):
        if value is not None and not value >= 0:
            raise UserError(f"{name}: must be at least 0, got {value}.")
    if config.weights_key is not None and config.weights is None:
        raise UserError("--weights-key: says where in a file of weights they are. Give the file by --weights.")
    plans(config.format, config.quantize, OPTIONS)


def with_data(config: ExportConfig) -> tuple[ExportConfig, bool]:
    """Choose the images and their size: those that were asked for, else those of the run that a checkpoint belongs to.

    Returns:
        the configuration with them, and whether they are of the model's classes: it was trained on them, or the user
        chose them for it.

    Raises:
        UserError: --data-dir would not be read, or the run's images are given by code that the user did not name.
    """
    run, asked = trained_on(config.source), config.data
    trained = None if run is None else run.config
    if config.input_size is None:
        height, width = (32, 32) if run is None else run.resolved.get("image_size", (32, 32))
        config = replace(config, input_size=(height, width))
    if asked is None and trained is None:
        config = replace(config, data="shapes")
    elif asked is None and trained is not None:
        if user_function.recognises(trained["data"]):
            raise UserError(
                f"--data: the run's images are given by code, {trained['data']}. If you trust it, add --data "
                f"{trained['data']}."
            )
        kept = trained.get("data_dir")
        place = config.data_dir or (None if kept is None else Path(kept))
        config = replace(config, data=trained["data"], data_dir=place)
    assert config.data is not None
    check_data_dir(config.data, config.data_dir)
    return config, asked is not None if trained is None else asked in (None, trained["data"])


def _reading(config: ExportConfig) -> dict[str, Any]:
    """Say how data are read: those that a checkpoint was trained on, as they were then."""
    how: dict[str, Any] = {"data_dir": config.data_dir, "columns": config.columns}
    trained = trained_on(config.source)
    if trained is None or trained.config["data"] != config.data:
        return how
    kept = {name: trained.config.get(name) for name in ("columns", "image_size", "validation_share")}
    return kept | {name: value for name, value in how.items() if value is not None}


def _record(config: ExportConfig, data_name: str, *, threads: int, labels: torch.Tensor) -> Record:
    return Record(
        experiment="export",
        command=command_of("export", config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=as_config(config) | {"quick": False},
        resolved={
            "format": list(dict(plans(config.format, config.quantize, OPTIONS))),
            "threads": threads,
            "images": len(labels),
            "data_name": data_name,
            "chance": most_frequent(labels),
        },
        versions=describe_versions(PACKAGES),
        machine=describe_machine(torch.device("cpu")),
    )


def _why_unscored(dataset: Dataset, outputs: int, *, is_own: bool) -> str:
    """Say why agreement with the model replaces accuracy; nothing if accuracy is measured."""
    if outputs != len(dataset.classes):
        why = f"the model has {outputs} outputs, {dataset.name} {len(dataset.classes)} classes"
    elif not is_own:
        why = f"{dataset.name} is not known to hold the model's classes; if another --data does, give it"
    else:
        return ""
    return f"Accuracy is not measured: {why}. Files are compared by their agreement with the model."


def _scaled(images: Images, dataset: Dataset, size: tuple[int, int]) -> Tensor:
    """Normalize images as in training and scale them, by bilinear interpolation."""
    parts = evaluation_batches(images, dataset=dataset, batch_size=256, device=torch.device("cpu"))
    whole = torch.cat([part for part, _ in parts]).contiguous(memory_format=torch.contiguous_format)
    if tuple(whole.shape[2:]) == tuple(size):
        return whole
    return F.interpolate(whole, size=size, mode="bilinear", align_corners=False, antialias=True)
