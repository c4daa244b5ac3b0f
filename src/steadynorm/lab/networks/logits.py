"""Wrap a model whose output is not a tensor."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Logits"]


class Logits(nn.Module):
    """Return the tensor of a model whose output is an object with ``logits``, as in Hugging Face's, or a tuple.

    Args:
        model: takes only images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        output = self.model(pixels)
        found: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return found
