"""Faults as people make them, each put into a healthy network by a few lines.

A decorator says for each whether thresholds may be chosen on it (``tuning``), or whether it is only for the final table
(``held_out``). The doctor's findings are compared with what :class:`Fault` states. In all files except ``estimates``,
``structure`` and ``surroundings``, that was written from the checks' one-line descriptions alone, before the doctor had
seen any of their faults. ``porting``, ``training``, ``batches`` and ``use``, then ``combining``, ``settings``,
``streams``, ``around`` and ``additions``, then ``files``, ``feeds``, ``layers`` and ``loops``, then the ``reported``
ones were once the held-out half, and have been seen; now it is the ``threads`` ones. Each of these and of the reported
ones comes from a public thread that its docstring names.
"""

from benchmarks.doctor.faults import (
    additions,
    around,
    batches,
    combining,
    estimates,
    feeds,
    files,
    layers,
    loops,
    porting,
    reported_building,
    reported_files,
    reported_training,
    reported_training_copies,
    settings,
    streams,
    structure,
    surroundings,
    threads_building,
    threads_files,
    threads_training,
    training,
    use,
)
from benchmarks.doctor.faults.registry import FAULTS, Fault

__all__ = [
    "FAULTS",
    "Fault",
    "additions",
    "around",
    "batches",
    "combining",
    "estimates",
    "feeds",
    "files",
    "layers",
    "loops",
    "porting",
    "reported_building",
    "reported_files",
    "reported_training",
    "reported_training_copies",
    "settings",
    "streams",
    "structure",
    "surroundings",
    "threads_building",
    "threads_files",
    "threads_training",
    "training",
    "use",
]
