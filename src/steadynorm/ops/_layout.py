"""What the compiled implementations share about how tensors lie in memory."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

__all__ = ["like"]


@overload
def like(tensor: Tensor, x: Tensor) -> Tensor: ...
@overload
def like(tensor: None, x: Tensor) -> None: ...
def like(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    """Give a tensor that lies as x does; a copy of it where it does not."""
    return tensor if tensor is None or tensor.stride() == x.stride() else torch.empty_like(x).copy_(tensor)
