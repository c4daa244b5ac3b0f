"""How well the doctor finds, places and repairs faults: ``python -m benchmarks.doctor``, or ``make doctor-bench``."""
