"""Lightning's classes, from the installed package."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["Callback", "Trainer", "is_a"]


def _package() -> Any:  # noqa: ANN401 (a module that need not be installed)
    """Return the package whose Trainer is in use: if both are installed, the one already imported."""
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        return sys.modules["pytorch_lightning"]
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if find_spec(name.partition(".")[0]) is not None:
            return import_module(name)
    raise ModuleNotFoundError(
        "steadynorm.integrations.lightning: lightning or pytorch_lightning must be installed, got neither. Run pip "
        "install 'steadynorm[integrations]'.",
        name="lightning",
    )


Callback: Any = _package().Callback
Trainer = Any
"""Class of either package."""


def is_a(callback: object, name: str) -> bool:
    """Return whether a callback is an instance of a class of this name in either package, or of a subclass."""
    return any(cls.__name__ == name for cls in type(callback).__mro__)
