"""Probe a loss around a point of training: along its gradient, and how one step changes the gradient.

Everything is computed on copies of the model, which itself stays unchanged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Loss", "Point", "Slope", "norm_of", "probe", "slope"]

Loss = Callable[[nn.Module], Tensor]
"""Computes the scalar loss of a model, from the model and random numbers alone; it may change the model's buffers."""


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A loss and its gradient at one point."""

    loss: float
    gradient: dict[str, Tensor]
    """Gradient of each parameter that requires one, by name."""

    @property
    def norm(self) -> float:
        """The l2 norm of the whole gradient."""
        return norm_of(self.gradient.values())


@dataclass(frozen=True, kw_only=True)
class Point:
    """The loss after a step of length eta along the gradient g(x), at x - eta g(x)."""

    eta: float
    loss: float
    change: float
    """||g(x) - g(x - eta g(x))||, the change of the gradient."""
    cosine: float
    """Cosine of the angle between the two gradients; NaN if one is zero."""
    smoothness: float
    """||g(x) - g(x - eta g(x))|| / ||eta g(x)||, a lower bound of its Lipschitz constant; NaN without a step."""


def slope(model: nn.Module, loss: Loss) -> Slope:
    """Measure loss and gradient at the model's weights; model and random numbers stay unchanged.

    Args:
        model: copied; parameters, their ``.grad``, buffers and modes stay unchanged.
        loss: a function of the weights alone; it gets the same random numbers at every call.
    """
    return _slope_of_copy(copy.deepcopy(model), loss)


def probe(model: nn.Module, loss: Loss, start: Slope, *, etas: Sequence[float]) -> tuple[Point, ...]:
    """Step along the gradient to x - eta g(x), for each eta from the same x, and measure the loss there.

    Args:
        model: the model at x; left unchanged.
        loss: as for :func:`slope`.
        start: result of :func:`slope` at x.
        etas: lengths of the steps in units of the gradient, as a learning rate is. If a length or
            the loss there is not finite, the point is NaN or infinite.

    Returns:
        a point for each of ``etas``, in their order.

    Source: Santurkar et al. 2018 (arXiv 1805.11604), section 3.2 and figure 4.
    """
    return tuple(_point(model, loss, start, eta) for eta in etas)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """Return the l2 norm over all elements, accumulated in float64."""
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


def _point(model: nn.Module, loss: Loss, start: Slope, eta: float) -> Point:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in start.gradient:
                parameter.sub_(start.gradient[name], alpha=eta)
    after = _slope_of_copy(twin, loss)
    change = norm_of(after.gradient[name] - before for name, before in start.gradient.items())
    distance = abs(eta) * start.norm
    return Point(
        eta=eta,
        loss=after.loss,
        change=change,
        cosine=_cosine(start, after),
        smoothness=change / distance if distance else math.nan,
    )


def _slope_of_copy(twin: nn.Module, loss: Loss) -> Slope:
    parameters = {name: one for name, one in twin.named_parameters() if one.requires_grad}
    devices = {one.device.index for one in parameters.values() if one.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
        value = loss(twin)
        gradients = torch.autograd.grad(value, tuple(parameters.values()), allow_unused=True, materialize_grads=True)
    return Slope(loss=value.item(), gradient=dict(zip(parameters, gradients, strict=True)))


def _cosine(first: Slope, second: Slope) -> float:
    product = sum((one.double() * second.gradient[name].double()).sum().item() for name, one in first.gradient.items())
    norms = first.norm * second.norm
    return product / norms if norms else math.nan
