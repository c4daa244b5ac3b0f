"""Faults as people make them, each put into a healthy network by a few lines.

Those of the files ``tuning_*`` are for choosing thresholds, those of ``held_out_*`` only for the final table. What the
doctor says is compared with what :class:`Fault` states. For the held-out half that was written down from the checks'
one-line descriptions alone, before the doctor had seen any of its faults or networks.
"""

from benchmarks.doctor.faults import (
    held_out_batches,
    held_out_state,
    held_out_training,
    held_out_use,
    tuning_state,
    tuning_use,
)
from benchmarks.doctor.faults.registry import FAULTS, Fault

__all__ = [
    "FAULTS",
    "Fault",
    "held_out_batches",
    "held_out_state",
    "held_out_training",
    "held_out_use",
    "tuning_state",
    "tuning_use",
]
