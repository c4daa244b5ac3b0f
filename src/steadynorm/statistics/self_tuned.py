"""Running statistics that choose their own momentum: a bank of momenta, weighted by how well each predicts.

Shape letters: K momenta, C channels; a dimension of size 2 holds mean and unbiased variance. The guarantee and its
proof are in ``README.md`` beside this file.
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
"""Count of unknown values: no effect, and never 0 / 0."""

LEARNING_RATE = 0.25
"""η for one channel, half of the largest that the second theorem in ``README.md`` allows."""


def learning_rate(num_features: int) -> float:
    """Return η/√C."""
    return LEARNING_RATE / math.sqrt(max(num_features, 1))


@dataclass(frozen=True, kw_only=True)
class SelfTuned:
    """Running statistics that choose their own momentum, by how well each of eleven momenta predicts the next batch.

    Mean and variance of a layer have separate weights over the momenta. All channels share them: the channels drift
    together, because the same optimizer step moves the layer's weights, so together they identify the right momentum
    within a few batches. Instances are immutable; :meth:`follow` returns the next state.

    Args:
        experts: shape (K, 2, C); expert k is the average of all batches so far, each weighted by its count and by (1 −
            momentum_k)^age.
        mass: shape (K, 2, 1), or (K, 2, C) once counts differ between channels; the same average of the counts.
        noise: shape (2, C); variance of a batch statistic, times its count.
        weights: shape (K, 2); weight of each expert, with sum 1 over K.
        step: shape (), int64; number of batches.

    Source: Herbster & Warmuth 1998, "Tracking the best expert"; theorem and proof in ``statistics/README.md``.

    >>> bank = SelfTuned.begin(3).follow(Moments(mean=torch.ones(3), var=torch.ones(3), count=8))
    >>> bank.estimate()[0].allclose(torch.ones(3))
    True
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
        """Return the initial state, mean 0 and variance 1; the first batch replaces both.

        Args:
            num_features: number of channels C.
            dtype: dtype of the statistics.
            device: device of the tensors.
        """
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
        """Momenta of the experts, 2^-k, shape (K, 1, 1)."""
        grid = torch.arange(NUM_EXPERTS, dtype=self.experts.dtype, device=self.experts.device)
        return torch.exp2(-grid).view(-1, 1, 1)

    def follow(self, batch: Moments) -> SelfTuned:
        """Return the state after one more batch: weigh the experts by their errors, then update each.

            loss_k    = Σ_c (expert_k,c − batch_c)² · n / noise_c
            weights   ∝ weights · exp(−η/√C · loss),            then 1/(2t) of each weight goes to either neighbour
            mass_k    = (1 − 2^-k) · mass_k + 2^-k · n
            expert_k  = expert_k + (batch − expert_k) · 2^-k · n / mass_k
            noise     = (1 − 2/t) · noise + 2/t · (batch − last batch)² / (1/n + 1/last n)

        n is the batch's count and t the number of batches including this one. No value is read on the host.

        Args:
            batch: the moments of one batch, without gradient. A mean of no values and a variance of fewer than two are
                skipped. A non-finite value stays in its own channel, which no longer affects the weights.

        Returns:
            the next state.

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
        r"""Return the running mean and the running unbiased variance, each of shape (C,).

        $$
        \mathrm{mean} = \sum_k w_k\,\mathrm{mean}_k \qquad \mathrm{var} = \sum_k w'_k\,\mathrm{var}_k + \sum_k
        w_k\,(\mathrm{mean}_k - \mathrm{mean})^2
        $$

        w are the weights for the mean, w′ those for the variance. The last term is the disagreement of the experts
        about the mean.
        """
        weights = self.weights.unsqueeze(-1)
        mean, var = (weights * self.experts).sum(0)
        between = (weights[:, 0] * (self.experts[:, 0] - mean).square()).sum(0)
        return mean, var + between

    def _skip_unknown(self, batch: Moments) -> tuple[Tensor, Tensor]:
        """Return mean and variance, (2, C), and count; unknown ones are as predicted, (K, 2, C), with count ~0."""
        seen = torch.stack((batch.mean, batch.var_unbiased))
        if not isinstance(batch.count, Tensor) and batch.count > 1:
            return seen, seen.new_full((1, 1), batch.count)
        known = batch.count > torch.arange(2, device=seen.device).unsqueeze(1)
        size = torch.where(known, batch.count, NO_COUNT).to(seen.dtype)
        return torch.where(known, seen, self.experts), size

    def _judged(self, square: Tensor, size: Tensor, pace: Tensor) -> Tensor:
        """Return the weights after a batch with squared errors ``square``, shape (K, 2, C)."""
        # x/0 and 0/0 occur in channels that have not varied yet.
        loss = (square * (size / self.noise)).nan_to_num_(nan=0, posinf=0).sum(-1)
        posterior = torch.sub(self.weights.log(), loss, alpha=learning_rate(square.shape[-1])).softmax(0)
        uphill = posterior.diff(dim=0)  # by how much each weight's next neighbour is larger
        received = pad(uphill, (0, 0, 0, 1)) - pad(uphill, (0, 0, 1, 0))
        return torch.addcmul(posterior, received, pace, value=0.25)
