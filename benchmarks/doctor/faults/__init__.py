"""Faults as people make them, each put into a healthy network by a few lines.

A decorator says of each whether thresholds may be chosen on it (``tuning``), or whether it is only for the final table
(``held_out``). What the doctor says is compared with what :class:`Fault` states. For ``porting``, ``training``,
``batches`` and ``use`` that was written down from the checks' one-line descriptions alone, before the doctor had seen
any of their faults; a third of them was looked at then, and belongs to the tuning half.
"""

from benchmarks.doctor.faults import batches, estimates, porting, surroundings, training, use
from benchmarks.doctor.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "batches", "estimates", "porting", "surroundings", "training", "use"]
