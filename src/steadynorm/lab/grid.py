"""Train a list of networks into one run directory, skipping what is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from steadynorm.lab.data import Dataset
from steadynorm.lab.progress import Display
from steadynorm.lab.ray_pool import Pool
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.training import Settings, train
from steadynorm.reporting.records import RunRecord, RunSpec

__all__ = ["train_grid"]


class _TableWriter:
    """Passes the news on and keeps the tables up to date, so that a report can be made at any moment."""

    def __init__(self, directory: RunDirectory, display: Display, records: dict[str, RunRecord]) -> None:
        self.directory, self.display, self.records = directory, display, records

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        self.display.step(record, step=step, steps=steps, loss=loss)

    def epoch(self, record: RunRecord) -> None:
        self.write(record)
        self.display.epoch(record)

    def write(self, record: RunRecord) -> None:
        self.records[record.spec.name] = record
        self.directory.write_runs(tuple(self.records.values()))


def train_grid(
    specs: Sequence[RunSpec],
    settings: Settings | Callable[[RunSpec], Settings],
    dataset: Dataset,
    *,
    directory: RunDirectory,
    display: Display,
    before: Sequence[RunRecord] = (),
    pool: Pool | None = None,
) -> tuple[RunRecord, ...]:
    """Train each network of ``specs``, one after the other or as tasks of Ray.

    Args:
        settings: of all networks, or what gives those of one.
        before: records of this experiment that are no part of ``specs`` and stay in its tables.
        pool: where to train; None is here.

    Returns:
        the records of ``specs``, finished or diverged, in their order.
    """
    records = {record.spec.name: record for record in before}
    records |= {spec.name: directory.load_record(spec) for spec in specs}
    writer = _TableWriter(directory, display, records)
    directory.write_runs(tuple(records.values()))  # so that a report knows from the start what is planned

    def begin(spec: RunSpec) -> None:
        number, left = specs.index(spec) + 1, sum(_epochs_left(records[other.name]) for other in specs)
        done = len(records[spec.name].epochs)
        display.begin(spec, number=number, of=len(specs), epochs_done=done, epochs_left=left)

    def end(record: RunRecord) -> None:
        writer.write(record)
        display.end(record)

    waiting = [
        (spec, settings if isinstance(settings, Settings) else settings(spec))
        for spec in specs
        if records[spec.name].status not in ("finished", "diverged")
    ]
    if pool is not None:
        pool.train(waiting, dataset, directory=directory, observer=writer, begin=begin, end=end)
    else:
        for spec, own in waiting:
            begin(spec)
            end(train(spec, own, dataset, directory=directory, observer=writer))
    return tuple(records[spec.name] for spec in specs)


def _epochs_left(record: RunRecord) -> int:
    return 0 if record.status in ("finished", "diverged") else record.spec.epochs - len(record.epochs)
