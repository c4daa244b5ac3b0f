"""Restore the state that a run may change besides buffers, modes and torch's random numbers."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["uncompiled", "untouched"]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore the random states of Python and NumPy, which augmentations use, and tensors in plain attributes.

    Some reparametrizations (``torch.nn.utils.weight_norm``) store the computed weight in such an attribute.
    """
    python, numpy = random.getstate(), np.random.get_state()
    held = [
        (module, {name: each for name, each in vars(module).items() if isinstance(each, Tensor)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, tensors in held:
            vars(module).update(tensors)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled parts eagerly; compiling them for one run would take seconds."""
    compiles = "torch._dynamo" in sys.modules  # importing it takes seconds
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        # Hooks that count modules fire once more for the wrapper, which is none that they count.
        warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
        yield
