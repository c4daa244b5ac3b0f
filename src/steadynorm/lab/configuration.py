"""The flags that experiments share, their checks, and the training settings they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from steadynorm.lab.arms import check_distinct
from steadynorm.lab.data import both_sides, check_data_dir
from steadynorm.lab.loggers import Logger
from steadynorm.lab.networks import build_network, check_network
from steadynorm.lab.networks.given import is_given
from steadynorm.lab.normalizations import check_settings
from steadynorm.lab.optimization import ADAMW, ADAMW_RATES
from steadynorm.lab.settings import Optimizer, Schedule, Settings
from steadynorm.lab.workers import number_of_workers
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.flags import check_values, flag
from steadynorm.reporting.records import Record

__all__ = [
    *(
        "Data",
        "ExperimentConfig",
        "OneRateConfig",
        "TrainingConfig",
        "prepared",
        "quickened",
        "reading_of",
        "settings_of",
    ),
    *("check_arms", "check_at_least", "check_experiment", "check_lists", "check_rates", "check_split"),
    "with_reached_milestones",
]

ConfigT = TypeVar("ConfigT", bound="ExperimentConfig")
Data = Annotated[str, tyro.conf.arg(metavar="NAME|PATH|PACKAGE.MODULE:FUNCTION")]
Network = Annotated[str, tyro.conf.arg(metavar="NAME|PACKAGE.MODULE:FUNCTION|timm:NAME|hf:CONFIG")]

ONLY_OF_CNN = ("widths", "depth")
LARGE = 4096  # pixels of images that are not known yet; images too small for a network are reported later


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """The options of every experiment."""

    seeds: tuple[int, ...] = (0,)
    """Every arm is trained once for each seed. A seed decides initial weights, order and augmentation, alike in every
    arm."""
    data: Data = "shapes"
    """shapes: embedded, drawn in seconds; digits: those of scikit-learn; cifar10, cifar100, mnist, fashion_mnist: from
    --data-dir, else from the Hugging Face hub; or your own data: a directory with a folder of images for each class,
    Parquet files, an .npz file, what save_to_disk wrote, OWNER/NAME on the hub, or a function (docs/your_data.md)."""
    data_dir: Path | None = None
    """Directory of a named data set, as it is published, as Parquet, or as .npz."""
    columns: tuple[str, str] | None = None
    """Names of the images and the labels: columns of a table, or arrays of an .npz file; default: image or img and
    label, x and y, or other usual names."""
    image_size: tuple[int, ...] | None = None
    """Height and width of the images, or one number for both: the shorter side is resized, and the centre cut out;
    default: their own size, which must be the same for all."""
    validation_share: float | None = None
    """Share of the images of each class to hold out if the data have no validation part; default: 0.1."""
    train_images: int | None = None
    """Train on this many images only: the first ones if the classes are mixed, else drawn from all; default: all."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Mixed precision (amp). bf16: autocast to bfloat16; auto: bf16 if the hardware multiplies bfloat16 matrices."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is a GPU."""
    threads: int | None = None
    """Threads that train each network; their number changes the last digits. Default: all cores, one with --on ray."""
    on: Literal["local", "ray"] = "local"
    """local: one network after the other, here or under torchrun; ray: each network is a Ray task, and as many run at
    once as are fastest together."""
    address: str | None = None
    """Address of a Ray cluster, as ray.init takes it: auto or HOST:PORT; default: start Ray on this machine."""
    out: Path | None = None
    """New directory for all output; default: runs/EXPERIMENT-DATE-TIME."""
    resume: Path | None = None
    """Continue the experiment of this run directory with its stored configuration; what is finished stays."""
    quick: bool = False
    """Run a small version on the embedded data, in under a minute."""
    json: bool = False
    """Print JSON lines on standard output: one for each epoch of a network, one for each cell that ends, and last the
    summary."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Flags given on the command line, also those with their default values; not a flag itself."""

    def by_data(self) -> Mapping[str, Any]:
        """Return the value that a field of None stands for, given the data."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(ExperimentConfig):
    """The options of experiments that train the lab's networks; the defaults are the article's."""

    network: Network = "cnn"
    """cnn: 3x3 convolutions in stages; resnet20, resnet18, vgg, mobilenet: those of the papers, for small images; mlp:
    three hidden layers; or your own network: a function that takes the number of classes and channels, timm:NAME, or
    hf:CONFIG, a model type or config.json of transformers. Each arm replaces its batch norms."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each stage of the cnn; a stage ends with 2x2 pooling."""
    epochs: int = 20
    """Passes over the training images."""
    optimizer: Optimizer = "sgd"
    """sgd: with --momentum; adamw: with decoupled weight decay, by default at --lr 0.001 (0.0003 0.001 0.003 if several
    rates are tried) and --weight-decay 0.01."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay, of all parameters."""
    schedule: Schedule = "step"
    """step: the learning rate is divided by ten after each of --milestones; cosine: it falls to zero along a half
    cosine; one-cycle: it rises over three tenths of the steps, then falls as with cosine."""
    milestones: tuple[int, ...] = (10, 15)
    """Epochs after which the step schedule divides the learning rate by ten."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in the training loss only."""
    compile: bool = False
    """Train every network through torch.compile. On the CPU that we measured it was slower."""
    log: tuple[Logger, ...] = ("tensorboard",)
    """Log each epoch, with readings of the norms, to tensorboard or wandb too; --log without a value logs to
    neither."""
    augment: Literal["none", "crop-flip"] = "none"
    """crop-flip: add a border of 4 pixels, crop at random, and mirror half of the images."""


@dataclass(frozen=True, kw_only=True)
class OneRateConfig(TrainingConfig):
    """The options of experiments that train at one learning rate, batch size and depth."""

    depth: int = 6
    """Convolutions of the cnn."""
    batch_size: int = 128
    """Images that are normalized together."""
    lr: float = 0.1
    """Learning rate, the same for every arm."""


def quickened(config: ConfigT, quick: Mapping[str, Any]) -> ConfigT:
    """Make an experiment small if ``--quick`` is set: ``quick`` replaces values that the user did not set.

    Raises:
        UserError: it is set together with data that are not embedded.
    """
    if not config.quick:
        return config
    default = type(config)()
    if config.data != default.data:
        raise UserError(f"--quick: runs on the embedded data, got --data {config.data}. Drop one of the two.")
    unset = [
        name for name in quick if getattr(config, name) == getattr(default, name) and flag(name) not in config.given
    ]
    return replace(config, **{name: quick[name] for name in unset})


def prepared(given: ConfigT, quick: Mapping[str, Any]) -> ConfigT:
    """Return the complete configuration of a new experiment, in which every value has an effect.

    Args:
        given: the values that the user gave.
        quick: see :func:`quickened`.

    Raises:
        UserError: a flag was given that the network, the optimizer or the schedule does not use.
    """
    given = _with_usual_of_adamw(given)
    config = _completed(quickened(given, quick))
    if not (isinstance(given, TrainingConfig) and isinstance(config, TrainingConfig)):
        return config
    default = type(given)()
    if config.network != "cnn":
        _check_unused(given, default, network=config.network)
        config = _completed(replace(config, **{name: getattr(default, name) for name in ONLY_OF_CNN}))
    _check_recipe(given)
    if given.milestones == default.milestones and "--milestones" not in given.given:
        config = with_reached_milestones(config)
    return config


def _with_usual_of_adamw(config: ConfigT) -> ConfigT:
    """Set the usual learning rate and weight decay of AdamW, if it trains and the user gave none."""
    if not isinstance(config, TrainingConfig) or config.optimizer != "adamw":
        return config
    default = type(config)()
    usual: dict[str, Any] = {**ADAMW, "lr": ADAMW_RATES if isinstance(vars(default)["lr"], tuple) else ADAMW["lr"]}
    return replace(config, **{name: value for name, value in usual.items() if not _is_given(config, name)})


def _is_given(config: ExperimentConfig, name: str) -> bool:
    return getattr(config, name) != getattr(type(config)(), name) or flag(name) in config.given


def _check_recipe(given: TrainingConfig) -> None:
    """Refuse flags that the optimizer or the schedule does not use."""
    if given.optimizer != "sgd" and _is_given(given, "momentum"):
        raise UserError(f"--momentum: is for SGD, got --optimizer {given.optimizer}. Drop it, or give --optimizer sgd.")
    if given.schedule != "step" and given.milestones and _is_given(given, "milestones"):
        raise UserError(f"--milestones: are for the step schedule, got --schedule {given.schedule}. Drop one.")


def _completed(config: ConfigT) -> ConfigT:
    """Set the values that depend on the data, if the user gave none."""
    return replace(config, **{name: value for name, value in config.by_data().items() if getattr(config, name) is None})


def with_reached_milestones(config: ConfigT) -> ConfigT:
    """Drop milestones without an effect: training does not reach them, or uses another schedule."""
    if not isinstance(config, TrainingConfig):
        return config
    reached = (one for one in config.milestones if one < config.epochs and config.schedule == "step")
    return replace(config, milestones=tuple(reached))


def _check_unused(given: ExperimentConfig, default: ExperimentConfig, *, network: str) -> None:
    """Refuse flags of the cnn if another network is trained."""
    usual = {name: (getattr(default, name), given.by_data().get(name)) for name in ONLY_OF_CNN}
    unused = [flag(name) for name in ONLY_OF_CNN if getattr(given, name) not in usual[name]]
    if unused:
        what = "it" if len(unused) == 1 else "them"
        raise UserError(f"{' '.join(unused)}: --network {network} has its own. Drop {what}, or give --network cnn.")


def check_experiment(
    config: ExperimentConfig,
    lists: Sequence[str] = (),
    *,
    may_be_empty: Sequence[str] = (),
    least: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Refuse values with which an experiment, or the training of its networks, is impossible.

    Args:
        config: the complete configuration.
        lists: fields of this experiment that hold several values, each once.
        may_be_empty: those of them that may be empty.
        least: fields of this experiment -> their smallest value.

    Raises:
        UserError: a value is invalid.
    """
    check_lists(config, ("seeds", *lists), may_be_empty=may_be_empty)
    if not all(0 <= seed < 2**63 for seed in config.seeds):
        raise UserError(f"--seeds: must be in [0, 2**63), got {' '.join(map(str, config.seeds))}.")
    check_data_dir(config.data, config.data_dir)
    both_sides(config.image_size)
    given = [name for name in ("train_images", "threads") if getattr(config, name) is not None]
    if config.address is not None and config.on != "ray":
        raise UserError("--address: needs a Ray cluster. Add --on ray.")
    if config.on == "ray" and number_of_workers() > 1:
        raise UserError("--on: ray starts its own processes. Run it without torchrun, or with --on local.")
    check_at_least(config, (*((name, 1) for name in given), *least.items()))
    if hasattr(config, "lr"):
        check_rates("--lr", _values_of(config, "lr"))
    if isinstance(config, TrainingConfig):
        _check_training(config)


def reading_of(config: Any) -> dict[str, Any]:  # noqa: ANN401 (the flags of data, of any command)
    """Return the arguments of :func:`steadynorm.lab.data.load_dataset` that a command's flags give."""
    return {name: getattr(config, name) for name in ("data_dir", "columns", "image_size", "validation_share")}


def _values_of(config: object, name: str) -> tuple[Any, ...]:
    """Return the values of a field that holds one or several."""
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,)


def _check_training(config: TrainingConfig) -> None:
    """Refuse values with which training is impossible, at any of its depths and batch sizes."""
    check_at_least(config, (("epochs", 1), ("momentum", 0), ("weight_decay", 0), ("batch_size", 1)))
    if not config.momentum < 1:
        raise UserError(f"--momentum: must be below 1, got {config.momentum}.")
    if not config.weight_decay < float("inf"):
        raise UserError(f"--weight-decay: must be finite, got {config.weight_decay}.")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"--label-smoothing: must be at least 0 and below 1, got {config.label_smoothing}.")
    bounds = [0, *config.milestones, config.epochs]
    if any(not before < after for before, after in itertools.pairwise(bounds)):
        raise UserError(
            f"--milestones: must rise strictly from at least 1 to less than the {config.epochs} epochs, "
            f"got {' '.join(map(str, config.milestones))}."
        )
    check_network(config.network)
    for depth in () if is_given(config.network) else _values_of(config, "depth"):
        how: dict[str, Any] = {"widths": config.widths, "classes": 10, "image_size": (LARGE, LARGE), "seed": 0}
        with torch.device("meta"):  # building it takes neither memory nor time
            build_network(config.network, arm="none", depth=depth, **how)


def check_arms(arms: Sequence[str]) -> None:
    """Refuse unknown normalizations and settings, and two arms with the same name; imports no class.

    Raises:
        UserError: an arm or one of its settings is unknown, or two arms have the same name.
    """
    check_distinct(arms)
    for arm in arms:
        check_settings(arm)


def check_at_least(config: object, limits: Iterable[tuple[str, float]]) -> None:
    """Refuse a number below its limit, or not finite; in a field with several numbers, any such number.

    Raises:
        UserError: a number is below its limit, or not finite.
    """
    for name, least in limits:
        for value in _values_of(config, name):
            if not value >= least:
                raise UserError(f"{flag(name)}: must be at least {least}, got {value}.")


def check_rates(names: str, rates: Sequence[float]) -> None:
    """Refuse a learning rate that is not positive and finite.

    Raises:
        UserError: a rate is not positive and finite.
    """
    if not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"{names}: a learning rate must be a positive number.")


def check_split(*batch_sizes: int) -> None:
    """Refuse a batch that torchrun's workers cannot share evenly.

    Raises:
        UserError: a batch size is no multiple of the number of workers.
    """
    workers = number_of_workers()
    for batch_size in batch_sizes:
        if batch_size % workers:
            raise UserError(
                f"--batch-size: {batch_size} cannot be split evenly over {workers} workers. Choose a multiple of "
                f"{workers}, or start fewer workers."
            )


def check_lists(config: object, names: Sequence[str], *, may_be_empty: Sequence[str] = ()) -> None:
    """Refuse an empty list, and a list that names a value twice: both would be the same run.

    Raises:
        UserError: a list is empty, or holds a value twice.
    """
    for name in names:
        check_values(name, getattr(config, name), may_be_empty=name in may_be_empty)


def settings_of(config: TrainingConfig, record: Record, *, accumulate: int = 1, **own: Any) -> Settings:  # noqa: ANN401
    """Return the settings that all networks of an experiment share, with each ``auto`` as the record resolved it.

    If there are several depths or batch sizes, this holds the first one; a network's own factors name its own.

    Args:
        config: configuration of the experiment.
        record: record of the experiment.
        accumulate: batches in a step.
        own: further settings.
    """
    optimization = ("optimizer", "momentum", "weight_decay", "schedule", "milestones", "label_smoothing", "compile")
    names = ("network", "widths", *optimization, "augment")
    return Settings(
        **{name: getattr(config, name) for name in names},
        depth=_values_of(config, "depth")[0],
        batch_size=_values_of(config, "batch_size")[0],
        accumulate=accumulate,
        device=torch.device(record.resolved["device"]),
        precision=record.resolved["precision"],
        **own,
    )
