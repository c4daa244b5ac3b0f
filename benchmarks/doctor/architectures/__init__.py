"""Networks that faults are put into, trained for a minute or two each: their statistics are those of real training.

Those of :mod:`~benchmarks.doctor.architectures.tuning` are for choosing thresholds; those of
:mod:`~benchmarks.doctor.architectures.held_out` are only for the final table.
"""

from benchmarks.doctor.architectures.held_out import HELD_OUT
from benchmarks.doctor.architectures.registry import CLASSES, Architecture, Half, Kind
from benchmarks.doctor.architectures.tuning import TUNING

__all__ = ["ARCHITECTURES", "CLASSES", "Architecture", "Half", "Kind"]

ARCHITECTURES: dict[str, Architecture] = {each.name: each for each in (*TUNING, *HELD_OUT)}
