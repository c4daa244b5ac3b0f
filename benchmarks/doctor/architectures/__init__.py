"""Networks that faults are put into, trained for a minute or two each: their statistics are those of real training.

Each says whether thresholds may be chosen on it, or whether it is only for the final table.
"""

from benchmarks.doctor.architectures.basic import BASIC
from benchmarks.doctor.architectures.families import FAMILIES
from benchmarks.doctor.architectures.further import FURTHER
from benchmarks.doctor.architectures.registry import CLASSES, Architecture, Half, Kind
from benchmarks.doctor.architectures.reported import REPORTED
from benchmarks.doctor.architectures.small import SMALL
from benchmarks.doctor.architectures.threads import THREADS

__all__ = ["ARCHITECTURES", "CLASSES", "Architecture", "Half", "Kind"]

ARCHITECTURES: dict[str, Architecture] = {
    each.name: each for each in (*BASIC, *FURTHER, *FAMILIES, *SMALL, *REPORTED, *THREADS)
}
