"""Running statistics without a momentum to choose: a bank of momenta, weighed by how well each predicts.

Shape letters: K momenta, C channels; a dimension of size 2 is mean and unbiased variance. What is guaranteed, and
the proof, are in ``README.md`` beside this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from steadynorm.statistics.moments import Moments

__all__ = ["LEARNING_RATE", "NUM_EXPERTS", "SelfTuned", "learning_rate"]

NUM_EXPERTS = 11
"""K: the momenta are 1, 1/2, …, 2^-10, so the longest memory is about a thousand batches."""

NO_COUNT = 1e-30
"""Count of what is unknown: without effect, and never 0 / 0."""

LEARNING_RATE = 0.25
"""η for one channel, half of the most that the second theorem in ``README.md`` bears."""


def learning_rate(num_features: int) -> float:
    """Give η/√C."""
    return LEARNING_RATE / math.sqrt(max(num_features, 1))


@dataclass(frozen=True, kw_only=True)
class SelfTuned:
    """The state of running statistics that choose their own momentum.

    A layer's mean and its variance each have weights of their own, which all channels share: the channels drift
    together, because the same step moves the layer's weights, and together they say within a few batches which
    momentum is right.

    Args:
        experts: shape (K, 2, C); expert k is the average of all batches so far, each weighed by its count and by
            (1 − momentum_k)^age. An exponential average tends to it as its initial value is forgotten.
        mass: shape (K, 2, 1), or (K, 2, C) once counts differ between channels; the same average of the counts.
        noise: shape (2, C); variance of a batch's statistic, times its count.
        weights: shape (K, 2); trust in each expert, sums to 1 over K.
        step: shape (), int64; batches seen.
    """

    experts: Tensor
    mass: Tensor
    noise: Tensor
    weights: Tensor
    step: Tensor

    @classmethod
    def begin(
        cls, num_features: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> SelfTuned:
        """Begin with mean 0 and variance 1, of which nothing is left after the first batch."""
        experts = torch.zeros(NUM_EXPERTS, 2, num_features, dtype=dtype, device=device)
        experts[:, 1] = 1
        return cls(
            experts=experts,
            mass=experts.new_zeros(NUM_EXPERTS, 2, 1),
            noise=experts.new_zeros(2, num_features),
            weights=experts.new_full((NUM_EXPERTS, 2), 1 / NUM_EXPERTS),
            step=torch.zeros((), dtype=torch.int64, device=device),
        )

    @property
    def momenta(self) -> Tensor:
        """Give 2^-k, shape (K, 1, 1)."""
        grid = torch.arange(NUM_EXPERTS, dtype=self.experts.dtype, device=self.experts.device)
        return torch.exp2(-grid).view(-1, 1, 1)

    def follow(self, batch: Moments) -> SelfTuned:
        """Judge the experts by one more batch, then let each of them see it.

            loss_k    = Σ_c (expert_k,c − batch_c)² · n / noise_c
            weights   ∝ weights · exp(−η/√C · loss),            then 1/(2t) of each weight goes to either neighbour
            mass_k    = (1 − 2^-k) · mass_k + 2^-k · n
            expert_k  = expert_k + (batch − expert_k) · 2^-k · n / mass_k
            noise     = (1 − 2/t) · noise + 2/t · (batch − last batch)² / (1/n + 1/last n)

        with n the batch's count and t the number of batches, this one included. No value is read by the host.

        Args:
            batch: the moments of one batch, outside of autograd. A mean of no values and a variance of less than two
                are skipped. What is not finite stays so in its own channel, which then has no say in the weights.

        Source: Herbster & Warmuth 1998, "Tracking the best expert"; von Neumann 1941 for the noise.
        """
        seen, size = self._skip_unknown(batch)
        step = self.step + 1
        pace = step.to(size.dtype).reciprocal().mul_(2)
        square = (seen - self.experts).square()
        momenta = self.momenta
        mass = torch.lerp(self.mass, size, momenta)
        last = self.mass[0]  # momentum 1 remembers one batch
        return SelfTuned(
            experts=torch.lerp(self.experts, seen, momenta * size / mass),
            mass=mass,
            noise=torch.lerp(self.noise, square[0] * (size * last / (size + last)), pace),
            weights=self._judged(square, size, pace),
            step=step,
        )

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Give the running mean and the running unbiased variance, of shape (C,) each.

            mean = Σ_k w_k · mean_k        var = Σ_k w′_k · var_k + Σ_k w_k · (mean_k − mean)²

        The last term is what the experts disagree by: values scatter around the stored mean by so much more.
        """
        weights = self.weights.unsqueeze(-1)
        mean, var = (weights * self.experts).sum(0)
        between = (weights[:, 0] * (self.experts[:, 0] - mean).square()).sum(0)
        return mean, var + between

    def _skip_unknown(self, batch: Moments) -> tuple[Tensor, Tensor]:
        """Give mean and variance, (2, C), and their count; what is unknown is as expected, (K, 2, C), and counts ~0."""
        seen = torch.stack((batch.mean, batch.var_unbiased))
        if not isinstance(batch.count, Tensor) and batch.count > 1:
            return seen, seen.new_full((1, 1), batch.count)
        known = batch.count > torch.arange(2, device=seen.device).unsqueeze(1)
        size = torch.where(known, batch.count, NO_COUNT).to(seen.dtype)
        return torch.where(known, seen, self.experts), size

    def _judged(self, square: Tensor, size: Tensor, pace: Tensor) -> Tensor:
        """Give the weights after a batch that missed the experts by ``square``, shape (K, 2, C)."""
        # x/0 and 0/0 are channels in which nothing has moved yet.
        loss = (square * (size / self.noise)).nan_to_num_(nan=0, posinf=0).sum(-1)
        posterior = torch.sub(self.weights.log(), loss, alpha=learning_rate(square.shape[-1])).softmax(0)
        uphill = posterior.diff(dim=0)  # by how much each weight's next neighbour is larger
        received = pad(uphill, (0, 0, 0, 1)) - pad(uphill, (0, 0, 1, 0))
        return torch.addcmul(posterior, received, pace, value=0.25)
