"""What else a run may touch, beside buffers, modes and torch's random numbers: put back afterwards."""

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
    """Put back the random numbers of Python and NumPy, which augmentations draw, and tensors in plain attributes.

    Some reparametrizations (``torch.nn.utils.weight_norm``) write the weight that they have computed there.
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
    """Let compiled parts run as they were written; to compile them for one run would take seconds."""
    compiles = "torch._dynamo" in sys.modules  # to import it takes seconds
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        # Hooks that count modules fire once more for the wrapper, which is none that they count.
        warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
        yield
