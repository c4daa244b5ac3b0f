"""Find modules with per-sample gradients, by the attributes that Opacus sets and by their code."""

from __future__ import annotations

import inspect
from types import FunctionType

from torch import nn

from steadynorm.doctor.checkpointing import all_names

__all__ = ["takes_gradients_per_sample"]

_DERIVATIVES = frozenset({"grad", "grad_and_value", "jacrev", "vjp"})


def takes_gradients_per_sample(module: nn.Module) -> bool:
    """Return whether a module is Opacus's wrapper, has per-sample gradients, or has a method that vmaps gradients."""
    if type(module).__name__ == "GradSampleModule":
        return True
    if any(hasattr(each, "grad_sample") for each in module._parameters.values() if each is not None):
        return True
    return not type(module).__module__.startswith("torch.") and any(map(_maps, vars(type(module)).values()))


def _maps(method: object) -> bool:
    function = inspect.unwrap(method) if callable(method) else method
    if not isinstance(function, FunctionType):
        return False
    names = all_names(function.__code__)
    return "call_for_per_sample_grads" in names or ("vmap" in names and bool(names & _DERIVATIVES))
