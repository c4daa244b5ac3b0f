"""An experiment as an entry of the registry, and what all experiments share: start, stop and resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, TypedDict, TypeVar, get_type_hints

import msgspec
import torch
from torch import nn

from steadynorm.lab.arms import arm_label
from steadynorm.lab.checkpoint import load_checkpoint
from steadynorm.lab.configuration import ExperimentConfig, TrainingConfig, prepared, reading_of, with_reached_milestones
from steadynorm.lab.data import Dataset, load_dataset, some
from steadynorm.lab.fitting_data import check_data, tell_limits
from steadynorm.lab.loggers import check_loggers
from steadynorm.lab.machine import choose_device, choose_precision, choose_threads
from steadynorm.lab.ray_pool import Pool, open_pool
from steadynorm.lab.training import Positive, network, overflow_ignored
from steadynorm.lab.trials import called_code, calling_fields, try_networks, words_of
from steadynorm.lab.workers import (
    check_alike,
    may_restart,
    number_of_workers,
    on_first,
    run_on_all_ranks,
    was_restarted,
)
from steadynorm.reporting.chance import entropy, most_frequent
from steadynorm.reporting.environment import count_cores, describe_machine, describe_versions
from steadynorm.reporting.failure import Interrupted, UserError, reason_of
from steadynorm.reporting.flags import as_config, command_of, flag
from steadynorm.reporting.place import check_new
from steadynorm.reporting.progress import Display
from steadynorm.reporting.records import FORMAT, Cell, Factors, Record, format_of, read_record
from steadynorm.reporting.report import Report
from steadynorm.reporting.run_directory import BEGUN, RunDirectory

__all__ = [
    "Experiment",
    "Task",
    "check_record",
    "check_same",
    "config_of",
    "explain_stop",
    "new_place",
    "new_record",
    "stored_config",
]


ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)

BESIDE_RESUME = ("on", "address", "resume", "log", "json", "data_dir")  # flags that do not change a stored experiment


@dataclass(frozen=True, kw_only=True)
class Task(Generic[ConfigT]):
    """What an experiment works with once its settings are complete."""

    config: ConfigT
    record: Record
    dataset: Dataset
    directory: RunDirectory
    display: Display
    pool: Pool | None = None
    """Pool that measures the cells; None means this process."""
    cells: dict[str, Cell] = dataclasses.field(default_factory=dict)
    """All planned cells by name, as last saved."""
    checkpoints: Mapping[str, bytes] | None = None
    """Files of the run directory, for a process that cannot read it."""

    def trained(self, network: Factors) -> nn.Module:
        """Load a trained network.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self.directory.checkpoint_path(Cell(factors=network))
        code = called_code(self.config)
        if self.checkpoints is None:
            return load_checkpoint(path, code=code).model
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / path.name
            here.write_bytes(self.checkpoints[path.name])
            return load_checkpoint(here, code=code).model


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[ConfigT]):
    """An experiment: the parts that its command, its report and its tests are made of."""

    name: str
    """Name of the command."""
    config: type[ConfigT]
    """Class of its flags; the docstring is the command's help."""
    quick: Mapping[str, Any]
    """Values that ``--quick`` sets if the user does not."""
    check: Callable[[ConfigT], None]
    """Refuses flags with which the experiment is impossible, before anything is written."""
    work: Callable[[Task[ConfigT]], None]
    """Trains and measures; skips what the run directory already holds."""
    describe: Callable[[Record], Report]
    """Describes the report of a record, finished or not."""
    fits: Callable[[ConfigT, Dataset], None] = lambda config, dataset: None
    """Refuses data with which the experiment is impossible, before anything is written."""
    trains: Callable[[ConfigT], Iterable[str]] = lambda config: getattr(config, "arms", ())
    """Names the arms, so that each can be tried before the first training."""

    def run(self, config: ConfigT, display: Display) -> Path:
        """Run the experiment, or the rest of it, in its run directory.

        Args:
            config: its flags.
            display: shows its progress.

        Returns:
            the run directory with all measurements, without the report.

        Raises:
            UserError: the flags or the data do not allow the experiment.
        """
        _check_workers(config)
        place = on_first(lambda: config.resume or config.out or new_place(self.name))
        config, stored = on_first(lambda: _begun_before(self, config))
        run_on_all_ranks(lambda: self.check(config))
        on_first(lambda: check_loggers(getattr(config, "log", ())))
        threads = stored.resolved["threads"] if stored is not None else _threads(config)
        # Ray's tasks set their own threads.
        torch.set_num_threads(threads if config.on == "local" else min(threads, count_cores()))
        load = partial(load_dataset, config.data, **reading_of(config), progress=display.message)
        dataset = run_on_all_ranks(load)
        if config.train_images is not None:
            if config.train_images > len(dataset.train):
                display.message(
                    f"--train-images: all {len(dataset.train):,} training images are taken, no more are there"
                )
            dataset = dataclasses.replace(dataset, train=some(dataset.train, config.train_images))
        run_on_all_ranks(lambda: check_data(config, dataset))
        run_on_all_ranks(lambda: self.fits(config, dataset))
        arms = run_on_all_ranks(lambda: self._tried(config, dataset))
        record = new_record(self.name, config, dataset, threads=threads, arms=arms)
        check_alike(record.resolved, what="Give all workers the same data and hardware.")
        if stored is not None:
            check_same(stored, record, display)
        directory = RunDirectory(place)
        with contextlib.ExitStack() as stack:
            on_first(lambda: stack.enter_context(directory.lock()))
            if stored is None:
                on_first(lambda: directory.begin(record))
            with explain_stop([self.name, "--resume", str(place), *_where(config)], place, display):
                _announce(record, config, place, display)
                tell_limits(record, display)
                for arm, made in arms.items():
                    display.message(f"{config.network} with {arm_label(arm)}: {made}")  # type: ignore[attr-defined]
                cells = {cell.name: cell for cell in stored.cells} if stored is not None else {}
                with _pool(config, threads, display) as pool, overflow_ignored():
                    task = Task(
                        config=config,
                        record=record,
                        dataset=dataset,
                        directory=directory,
                        display=display,
                        pool=pool,
                        cells=cells,
                    )
                    self.work(task)
        return place

    def _tried(self, config: ConfigT, dataset: Dataset) -> dict[str, str]:
        return try_networks(config, self.trains(config), dataset) if hasattr(config, "network") else {}


def _threads(config: ExperimentConfig) -> int:
    """Return the number of threads for a network: one for each Ray task, so that many fit, unless a flag sets it."""
    if config.address is not None and config.threads is not None:
        return config.threads  # a cluster's machines may have more cores than this one; the pool asks them
    return 1 if config.on == "ray" and config.threads is None else choose_threads(config.threads)


def _pool(config: ExperimentConfig, threads: int, display: Display) -> contextlib.AbstractContextManager[Pool | None]:
    if config.on == "local":
        return contextlib.nullcontext()
    return open_pool(config.address, threads=threads, display=display)


def _where(config: ExperimentConfig) -> list[str]:
    """Return the flags that a resumed run needs again: where it runs, and whose code it may call."""
    address = [] if config.address is None else ["--address", config.address]
    place = [] if config.on == "local" else ["--on", config.on, *address]
    log = config.log if isinstance(config, TrainingConfig) else TrainingConfig.log
    again = words_of(config, calling_fields(config))
    return [*again, *place, *(["--log", *log] if log != TrainingConfig.log else [])]


def _stored_record(experiment: Experiment[Any], place: Path) -> Record:
    stored = read_record(place)
    if stored.experiment != experiment.name:
        raise UserError(
            f"--resume: {place} holds {stored.experiment}. Run: steadynorm {stored.experiment} --resume {place}"
        )
    if format_of(place) != FORMAT:
        raise UserError(
            f"--resume: {place} was written by steadynorm {stored.versions.get('steadynorm', '')} in an older format. "
            f"Continue with that version, or start again; steadynorm report {place} shows what it holds."
        )
    check_record(experiment, stored)
    return stored


def _begun_before(experiment: Experiment[ConfigT], config: ConfigT) -> tuple[ConfigT, Record | None]:
    """Return the configuration and, if the experiment resumes, its stored record.

    A run that torchrun restarts resumes in its own ``--out``.
    """
    if config.resume is not None:
        stored = _stored_record(experiment, config.resume)
        return with_reached_milestones(stored_config(config, stored)), stored
    config = prepared(config, experiment.quick)
    if was_restarted() and config.out is not None and (config.out / "config.json").exists():
        stored = _stored_record(experiment, config.out)
        if stored.config == as_config(config):
            return config, stored
    if config.out is not None and not (config.out / "config.json").exists():  # locking reports that case
        check_new(config.out, may_hold=BEGUN)
    return config, None


def _check_workers(config: ExperimentConfig) -> None:
    """Refuse workers that cannot work together, or could not resume after one of them died.

    Raises:
        UserError: their flags or versions differ, or they would not find their run directory again.
    """
    check_alike(
        {flag(f.name): getattr(config, f.name) for f in dataclasses.fields(config)},
        what="Start them with the same command.",
    )
    check_alike(describe_versions(), what="Install the same versions.")
    if may_restart() and config.out is None and config.resume is None:
        raise UserError(
            "--out: must be given where torchrun may start the workers again (--max-restarts), so that they find what "
            "is finished."
        )


def _announce(record: Record, config: ExperimentConfig, place: Path, display: Display) -> None:
    if config.data == "shapes":
        display.message(f"embedded data; for photographs run: steadynorm {record.experiment} --data cifar10")
    display.message(
        f"{record.config['data']} in {record.resolved['precision']} on {record.resolved['device']} "
        f"with {_strength(record)}, into {place}"
    )


def _strength(record: Record) -> str:
    threads, workers = record.resolved["threads"], record.resolved["workers"]
    each = f"{threads} thread{'s' if threads > 1 else ''}"
    return each if workers == 1 else f"{workers} workers of {each}"


def new_record(
    name: str,
    config: Any,  # noqa: ANN401 (any experiment's dataclass)
    dataset: Dataset,
    *,
    threads: int | None = None,
    arms: Mapping[str, str] = MappingProxyType({}),
) -> Record:
    """Make the first record of an experiment, with each ``auto`` resolved.

    Args:
        name: name of the command.
        config: its flags.
        dataset: its data.
        threads: threads for each network's training; default: those of this process.
        arms: how the arms were made from a user's network.
    """
    device = choose_device(config.device)
    return Record(
        experiment=name,
        command=command_of(name, config),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=as_config(config),
        resolved={
            "device": device.type,
            "precision": choose_precision(config.precision, device),
            "threads": torch.get_num_threads() if threads is None else threads,
            "workers": number_of_workers(),
            "train_images": len(dataset.train),
            "validation_images": len(dataset.validation),
            "classes": list(dataset.classes),
            "channels": dataset.channels,
            "image_size": list(dataset.image_size),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "data_name": dataset.name,
            "chance": most_frequent(dataset.validation.labels),
            "train_chance": most_frequent(dataset.train.labels),
            "train_entropy": entropy(dataset.train.labels),
            "data_sha256": _digest(dataset),
            **({"arms_made": dict(arms)} if arms else {}),
        },
        versions=describe_versions(),
        machine=describe_machine(device),
    )


def stored_config(given: ConfigT, record: Record) -> ConfigT:
    """Return the configuration that the run directory began with.

    Raises:
        UserError: a flag given with --resume contradicts it.
    """
    default = type(given)()
    names = [f.name for f in dataclasses.fields(given) if f.name not in (*BESIDE_RESUME, "data", "given")]
    changed = [name for name in names if getattr(given, name) != getattr(default, name)]
    stored = config_of(type(given), record)
    again = [name for name in calling_fields(stored) if getattr(given, name) == getattr(stored, name)]
    extra = [flag(name) for name in names if name not in again and (name in changed or flag(name) in given.given)]
    if extra:
        raise UserError(f"--resume: continues with the stored configuration. Drop {' '.join(extra)}.")
    if missing := [name for name in calling_fields(stored) if name not in again]:
        words = shlex.join(words_of(stored, missing))
        raise UserError(f"--resume: the stored configuration names code to run. If you trust it, add {words}")
    if given.data != default.data or "--data" in given.given:  # the data may have moved; a digest refuses other data
        stored = dataclasses.replace(stored, data=given.data)
    if given.data_dir is not None:
        stored = dataclasses.replace(stored, data_dir=given.data_dir)
    told = {name: getattr(given, name) for name in ("on", "address", "log", "json") if name in vars(given)}
    return dataclasses.replace(stored, **told)


def config_of(kind: type[ConfigT], record: Record) -> ConfigT:
    """Read a configuration back from a record.

    Raises:
        UserError: a field has a value of the wrong type.
    """
    types, values = get_type_hints(kind), {}
    for name, value in record.config.items():
        if name in types:
            with _damage_named(f"config.{name}"):
                values[name] = msgspec.convert(value, types[name], dec_hook=_as_path)
    return dataclasses.replace(kind(), **values)


def check_record(experiment: Experiment[Any], record: Record) -> None:
    """Refuse a record that no run of its experiment could have written.

    Raises:
        UserError: a value has the wrong type, or the command itself would refuse it.
    """
    config = config_of(experiment.config, record)
    for name in config.by_data():
        if getattr(config, name) is None:
            raise UserError(f"a record is damaged (config.{name} is null). Restore it, or run the experiment again.")
    experiment.check(with_reached_milestones(config))
    with _damage_named("resolved"):
        msgspec.convert(record.resolved, _Resolved)
    kinds = _factor_types(config)
    for cell in record.cells:
        for name, value in cell.factors.items():
            with _damage_named(f"{name} of {cell.name}"):
                msgspec.convert(value, kinds.get(name, str))


def _factor_types(config: ExperimentConfig) -> dict[str, Any]:
    """Return the type of a factor: that of :func:`network`, that of the configuration's list, or else text."""
    listed = {name: type(values[0]) for name, values in vars(config).items() if isinstance(values, tuple) and values}
    singular = {re.sub("ies$", "y", name).removesuffix("s"): kind for name, kind in listed.items()}
    return listed | singular | get_type_hints(network, include_extras=True)


class _Resolved(TypedDict, total=False):
    device: str
    precision: str
    threads: Positive
    workers: Positive
    train_images: Positive
    validation_images: Positive
    classes: Annotated[list[str], msgspec.Meta(min_length=1)] | Positive
    channels: Positive
    image_size: list[Positive]
    mean: list[float]
    std: list[float]
    data_name: str
    chance: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    train_chance: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    train_entropy: Annotated[float, msgspec.Meta(gt=0)]
    data_sha256: str


@contextlib.contextmanager
def _damage_named(what: str) -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        raise UserError(f"a record is damaged ({what}: {error}). Restore it, or run the experiment again.") from error


def _as_path(kind: type[Any], value: Any) -> Any:  # noqa: ANN401 (as msgspec has it)
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{value!r} is no {kind.__name__}")


def check_same(stored: Record, now: Record, display: Display) -> None:
    """Refuse other data or arithmetic; warn if other versions or another machine may change the last digits.

    Raises:
        UserError: data, precision or device differ from those that the experiment began with.
    """
    if stored.resolved["data_sha256"] != now.resolved["data_sha256"]:
        raise UserError(
            f"--resume: the data differ from those that the experiment began with, {stored.config['data']}. Give their "
            "place by --data, or by --data-dir for a named data set."
        )
    before, workers = stored.resolved.get("workers", 1), now.resolved["workers"]
    if before != workers:
        raise UserError(
            f"--resume: the experiment began on {before} worker{'s' if before > 1 else ''}, now there "
            f"{'are' if workers > 1 else 'is'} {workers}. "
            + ("Run it without torchrun." if before == 1 else f"Run it under torchrun with {before} in all.")
        )
    for name in ("precision", "device"):
        if stored.resolved[name] != now.resolved[name]:
            raise UserError(
                f"--resume: the experiment began with {name} {stored.resolved[name]}, "
                f"this machine gives {now.resolved[name]}. Resume where it began."
            )
    if (stored.versions, stored.machine) != (now.versions, now.machine):
        display.message("resumed with other versions or on another machine: the last digits may differ")


def new_place(name: str) -> Path:
    """Name a new run directory by date and time."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


@contextlib.contextmanager
def explain_stop(command: Sequence[str], place: Path, display: Display) -> Iterator[None]:
    """Tell the user how to resume after Ctrl-C or a full disk.

    Args:
        command: the arguments that resume the run, after the program's name.
        place: the run directory.
        display: receives progress.

    Raises:
        UserError: a file could not be written.
    """
    resume = shlex.join(["steadynorm", *command])
    try:
        yield
    except KeyboardInterrupt as stop:
        display.message(f"interrupted; continue with: {resume}")
        raise Interrupted from stop
    except OSError as error:
        raise UserError(f"{error.filename or place}: {reason_of(error)}. Fix this and resume: {resume}") from error


def _digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation):
        for part in (split.rows, split.labels):
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()
