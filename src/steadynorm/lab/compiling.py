"""Compile the network of a training with torch.compile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from steadynorm.lab.settings import Settings
from steadynorm.reporting.failure import UserError, one_line

__all__ = ["compiled", "failure_explained"]


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a model's forward and backward at their first run; parameters and buffers stay those of the model.

    Drops what was compiled before: torch keeps few compiled versions of a forward, and runs any further ones
    uncompiled.
    """
    torch.compiler.reset()
    function: Callable[[Tensor], Tensor] = torch.compile(model)
    return function


@contextlib.contextmanager
def failure_explained(settings: Settings) -> Iterator[None]:
    """Report in one line why a network cannot be compiled.

    Raises:
        UserError: torch.compile failed.
    """
    if not settings.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        why = one_line(getattr(error, "inner_exception", error))
        raise UserError(f"--compile: torch.compile failed ({why}). Run it without --compile.") from error
