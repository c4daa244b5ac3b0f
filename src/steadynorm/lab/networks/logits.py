"""A model whose output is no tensor."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Logits"]


class Logits(nn.Module):
    """A model whose output is an object with ``logits``, as Hugging Face's have it, or a tuple, with a tensor for it.

    Args:
        model: takes images alone.
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
