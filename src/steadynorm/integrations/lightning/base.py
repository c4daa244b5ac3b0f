"""Lightning's own classes, of the package that is there."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["Callback", "Trainer", "is_a"]


def _package() -> Any:  # noqa: ANN401 (a module that need not be installed)
    """Give the package whose Trainer is in use: of two that are installed, that which is imported already."""
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
"""Of either package."""


def is_a(callback: object, name: str) -> bool:
    """Tell whether a callback is of a class of either package, or of one derived from it."""
    return any(cls.__name__ == name for cls in type(callback).__mro__)
