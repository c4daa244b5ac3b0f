"""Look at a loss around a point of training: along its gradient, and at what one step does to the gradient.

Everything is computed on copies of the model, so that looking changes nothing.
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
    """By name of the parameter; of every one that requires a gradient."""

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
    """||g(x) - g(x - eta g(x))||, what the gradient at x does not predict of the one after the step."""
    cosine: float
    """Of the angle between the two gradients; NaN where one is zero."""
    smoothness: float
    """||g(x) - g(x - eta g(x))|| / ||eta g(x)||, a lower bound of the gradient's Lipschitz constant; NaN of no step."""


def slope(model: nn.Module, loss: Loss) -> Slope:
    """Measure loss and gradient where the model stands, and leave model and random numbers as they are.

    Args:
        model: is copied; neither parameters, their ``.grad``, buffers nor modes change.
        loss: sees the same random numbers at every call until others are drawn elsewhere: one function of the weights.
    """
    return _slope_of_copy(copy.deepcopy(model), loss)


def probe(model: nn.Module, loss: Loss, start: Slope, *, etas: Sequence[float]) -> tuple[Point, ...]:
    """Step along the gradient to x - eta g(x), for each eta from the same x, and look at the loss there.

    Args:
        model: stands at x; left alone as by :func:`slope`.
        loss: as of :func:`slope`.
        start: what :func:`slope` gave at x.
        etas: lengths of the steps in units of the gradient, as a learning rate is. One that is not finite, or that
            leads to where the loss is not, gives a point of NaN or infinity.

    Returns:
        a point for each of ``etas``, in their order.

    Source: Santurkar et al. 2018 (arXiv 1805.11604), section 3.2 and figure 4.
    """
    return tuple(_point(model, loss, start, eta) for eta in etas)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """Give the l2 norm of all elements together, accumulated in float64."""
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
