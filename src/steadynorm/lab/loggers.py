"""Loggers for the epochs of a trained network, besides its record: TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any, Literal

from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.loggers import PREFIX, log
from steadynorm.reporting.records import Cell, read_config
from steadynorm.reporting.run_directory import RunDirectory

__all__ = ["Log", "Logger", "check_loggers", "logged"]

Logger = Literal["tensorboard", "wandb"]
EPOCH = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "grad_norm_mean", "learning_rate")
"""Values of an epoch to log."""
FEW = 24
"""Number of layers to log one by one; with more, only their median and maximum."""


def check_loggers(names: Sequence[Logger]) -> None:
    """Refuse a logger that is not installed.

    Raises:
        UserError: the logger is missing; names the command that installs it.
    """
    if "wandb" in names and find_spec("wandb") is None:
        raise UserError("--log wandb: Weights & Biases is not installed. Run: pip install wandb")


class Log:
    """The loggers of one network's epochs.

    Args:
        names: names of the loggers.
        directory: run directory of the experiment.
        cell: the network with its finished epochs.

    Raises:
        UserError: Weights & Biases refuses to start a run.
    """

    def __init__(self, names: Sequence[Logger], directory: RunDirectory, cell: Cell) -> None:
        self.to: list[Any] = []
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            # One writer for a run, not one for an epoch: TensorBoard reads the files of a run in the order of their
            # names. For writers of the same second that is not always the order of time, and later epochs are dropped.
            done = len(cell.series("val_accuracy"))
            self.to.append(SummaryWriter(str(directory.tensorboard_path(cell)), purge_step=done + 1))
        if "wandb" in names:
            self.to.append(_wandb_run(directory, cell))

    def write(self, cell: Cell, readings: Mapping[str, float]) -> None:
        """Log the last epoch of the network, and the readings of its norms."""
        epoch = max(cell.series(EPOCH[0]))
        for to in self.to:
            log(logged(cell, readings), epoch, to=to, prefix="")
            if hasattr(to, "flush"):
                to.flush()

    def close(self) -> None:
        """Close the loggers."""
        for to in self.to:
            (to.close if hasattr(to, "close") else to.finish)()
        self.to = []


def logged(cell: Cell, readings: Mapping[str, float]) -> dict[str, float]:
    """Return the values of a network's last epoch, under names that loggers group.

    Readings of norms come from :func:`steadynorm.surgery.readings_during`: their median and maximum over the layers,
    ``norm/median/gate``, and with few layers each one, ``norm/layer/gate``.
    """
    epoch = max(cell.series(EPOCH[0]))
    found = {name.replace("_", "/", 1): cell.series(name)[epoch] for name in EPOCH}
    by_quantity: dict[str, list[float]] = {}
    for name, value in readings.items():
        by_quantity.setdefault(name.rpartition("/")[2], []).append(value)
    for quantity, values in by_quantity.items():
        found |= {f"{PREFIX}median/{quantity}": median(values), f"{PREFIX}max/{quantity}": max(values)}
    are_few = len({name.rpartition("/")[0] for name in readings}) <= FEW
    return found | ({f"{PREFIX}{name}": value for name, value in readings.items()} if are_few else {})


def _wandb_run(directory: RunDirectory, cell: Cell) -> Any:  # noqa: ANN401 (of a package that may be absent)
    """Start or resume a run of Weights & Biases; its id is a function of experiment and network."""
    import wandb

    record = read_config(directory.path)
    identity = f"{record.created} {record.command} {cell.name}"
    try:
        return wandb.init(
            project="steadynorm",
            group=f"{record.experiment} {record.created}",
            name=cell.name,
            id=hashlib.sha256(identity.encode()).hexdigest()[:16],
            resume="allow",
            reinit="create_new",  # Ray trains several networks at once
            dir=str(directory.path),
            config={**record.config, **cell.factors},
            # A run directory must hold no links.
            settings=wandb.Settings(silent=True, console="off", symlink=False),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"--log wandb: Weights & Biases refuses ({one_line(error)}). Run: wandb login; or set WANDB_MODE=offline."
        ) from error
