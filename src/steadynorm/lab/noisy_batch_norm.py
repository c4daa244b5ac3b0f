"""Batch norm whose outputs are shifted and scaled at random, with new numbers at every step.

After Santurkar et al. 2018 (arXiv 1805.11604), section 2.2: it restores the instability of distributions that
batch norm removes. Theirs draws a distribution for each step and from it a number for each activation; here all images
of a batch share their channel's numbers, so that every channel's distribution moves as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadynorm.layers import BatchNorm2d, NormAddActivation
from steadynorm.reporting.failure import UserError

__all__ = ["LARGEST_SCALING", "LARGEST_SHIFT", "NOISY", "ChannelNoise", "add_noise_"]

NOISY = "noisy_batch_norm"
"""Name of the arm."""

LARGEST_SHIFT = 0.5
"""Range of the shift, in standard deviations of a normalized channel."""
LARGEST_SCALING = 0.25
"""Range of the scale around 1."""


class ChannelNoise(nn.Module):
    """Shift and scale each channel at random while training.

        y = x * scale + shift,  scale in [0.75, 1.25), shift in [-0.5, 0.5), uniform, one of each for each channel

    In evaluation mode y = x, which is the mean over the noise.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, *) to the same shape; in training, draws 2·C numbers from torch's generator."""
        if not self.training:
            return input
        shape = (2, 1, input.shape[1], *([1] * (input.ndim - 2)))
        drawn = torch.rand(shape, device=input.device)  # float32, so the numbers do not depend on the input's dtype
        scale, shift = drawn.mul_(2).sub_(1).to(input.dtype)
        return torch.addcmul(shift * LARGEST_SHIFT, input, 1 + scale * LARGEST_SCALING)


def add_noise_(model: nn.Module) -> nn.Module:
    """Put noise between every ``steadynorm.BatchNorm2d`` of a model and its activation.

    Returns:
        the model.

    Raises:
        UserError: the model has none.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BatchNorm2d)]
    if not layers:
        raise UserError(f"--arms: {NOISY} needs a batch norm of images, and the network has none. Drop it.")
    for name, layer in layers:
        activation, layer.activation = layer.activation, None
        noisy = NormAddActivation(nn.Sequential(layer, ChannelNoise()), activation)
        model.set_submodule(name, noisy.train(layer.training))
    return model
