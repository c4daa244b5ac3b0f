"""Padding with a separate value for each channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.statistics.moments import per_channel

__all__ = ["ChannelPad"]


class ChannelPad(nn.Module):
    """Pad (N, C, ...) input with a constant for each channel; the same in training and in evaluation.

    Replaces a batch norm folded into the convolution after it. That convolution padded the norm's output with zeros;
    the folded one needs the value that the norm maps to zero, −shift/gain.

    Args:
        value: shape (C,).
        pad: two numbers for each spatial dimension, the last one first, as :func:`torch.nn.functional.pad` has them.

    >>> ChannelPad(torch.tensor([5.0, 7.0]), [1, 0])(torch.zeros(1, 2, 2))
    tensor([[[5., 0., 0.],
             [7., 0., 0.]]])
    """

    def __init__(self, value: Tensor, pad: list[int]) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.value: Tensor
        self.pad = list(pad)

    def forward(self, input: Tensor) -> Tensor:
        """Pad the input.

        Args:
            input: shape (N, C, ...).

        Returns:
            same number of dimensions, longer by ``pad``; dtype and memory format of input.
        """
        output = F.pad(input, self.pad)
        value = per_channel(self.value.to(output.dtype), output)
        for place, (left, right) in enumerate(zip(self.pad[::2], self.pad[1::2], strict=True)):
            dim = output.dim() - 1 - place
            output.narrow(dim, 0, left).copy_(value)
            output.narrow(dim, output.shape[dim] - right, right).copy_(value)
        return output

    def extra_repr(self) -> str:
        """Show channels and padding."""
        return f"{len(self.value)}, pad={self.pad}"
