"""Moments of consecutive batches in bounded memory, and the standard error of their average."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics import Moments
from steadynorm.statistics.moments import join

__all__ = ["Groups", "standard_error"]


class Groups:
    """Moments of groups of consecutive batches, with equally many batches in all groups but the last.

    When no room is left for another group, neighbouring groups are merged.

    Args:
        channels: C.
        most: largest number of groups, even.
    """

    def __init__(self, channels: int, most: int = 64) -> None:
        self._channels, self._most = channels, most
        self._groups: list[Moments] = []
        self._size = 1  # batches in a full group
        self._filled = 0  # batches in the last group

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, batch: Moments) -> None:
        """Add a batch; float64."""
        if self._groups and self._filled < self._size:
            self._groups[-1] = self._groups[-1].merge(batch)
            self._filled += 1
            return
        if len(self._groups) == self._most:
            pairs = zip(self._groups[::2], self._groups[1::2], strict=True)
            self._groups = [first.merge(second) for first, second in pairs]
            self._size *= 2
        self._groups.append(batch)
        self._filled = 1

    def total(self) -> Moments:
        """Return the moments of all batches together; without batches, count 0."""
        if not self._groups:
            zero = torch.zeros(self._channels, dtype=torch.float64)
            return Moments(mean=zero, var=zero, count=0)
        return join(self._groups)

    def scatter(self, total: Moments) -> Tensor:
        """Return the sums that :func:`standard_error` needs; those of several ranks can be added.

            Σ_b n_b²·(m_b − m)²        Σ_b n_b²·(u_b − v)²,   u_b = v_b + (m_b − m)²        number of groups

        Args:
            total: m and v, of all ranks.

        Returns:
            shape (2C + 1,), float64.
        """
        sums = torch.zeros(2, self._channels, dtype=torch.float64)
        for group in self._groups:
            distance = (group.mean - total.mean).square()
            sums[0] += group.count**2 * distance
            sums[1] += group.count**2 * (group.var + distance - total.var).square()
        return torch.cat((sums.view(-1), sums.new_tensor([len(self)])))


def standard_error(scatter: Tensor, total: Moments, eps: float) -> Tensor:
    """Return the standard errors of mean and variance, from their differences between groups of batches.

        SE² = B/(B − 1) · Σ_b (n_b/n)²·(m_b − m)²,        for the variance with u_b and v

    Batches count as independent, not values: neighbouring pixels, and samples of one batch, are not.

    Args:
        scatter: see :meth:`Groups.scatter`.
        total: of all groups.
        eps: of the layer; a channel whose variance is far below it does not matter.

    Returns:
        shape (2, C): of the mean in units of √(v + eps), of the variance in units of v + eps; NaN for one group.

    Source: the estimator for ratios of cluster sums, Cochran 1977, "Sampling techniques", eq. 6.13.
    """
    groups = scatter[-1]
    error = (groups / (groups - 1) * scatter[:-1]).sqrt().view(2, -1) / total.count
    scale = total.var + eps
    return torch.where(groups > 1, error / torch.stack((scale.sqrt(), scale)), torch.nan)
