"""The former place of :mod:`steadynorm.adaptation`; it goes in version 0.2."""

import warnings

from steadynorm import adaptation
from steadynorm.lab import judging

__all__ = ["ADAPTATIONS", "Adaptation", "Calibration", "calibrate", "check_methods", "judge_methods"]  # noqa: F822


def __getattr__(name: str) -> object:
    """Give a name from where it is now, with a warning."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "steadynorm.lab.adaptation is steadynorm.adaptation now; the old name goes in version 0.2.",
        DeprecationWarning,
        stacklevel=2,
    )
    found: object = getattr(judging if hasattr(judging, name) else adaptation, name)
    return found
