"""Probing against what a quadratic loss gives in closed form, and against itself for what it must not change."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from steadynorm.lab.probe import norm_of, probe, slope

RANDOM = np.random.default_rng(3)
ROOT = RANDOM.normal(size=(5, 5))
A = ROOT @ ROOT.T  # symmetric, positive definite
X = RANDOM.normal(size=5)
ETAS = (0.01, 0.1, 0.4)


class Vector(nn.Module):
    def __init__(self, values) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.as_tensor(values).clone())


def quadratic(model):
    return 0.5 * model.x @ torch.from_numpy(A) @ model.x


def test_loss_and_gradient_of_a_quadratic() -> None:
    found = slope(Vector(X), quadratic)
    assert found.loss == pytest.approx(0.5 * X @ A @ X, rel=1e-14)
    np.testing.assert_allclose(found.gradient["x"], A @ X, rtol=1e-13)
    assert found.norm == pytest.approx(np.linalg.norm(A @ X), rel=1e-14)


def test_points_along_the_gradient_of_a_quadratic() -> None:
    """A step eta changes the gradient g by eta A g, so the effective smoothness is ||A g|| / ||g|| at every eta."""
    model, g = Vector(X), A @ X
    points = probe(model, quadratic, slope(model, quadratic), etas=ETAS)
    assert tuple(point.eta for point in points) == ETAS
    for point in points:
        there = X - point.eta * g
        assert point.loss == pytest.approx(0.5 * there @ A @ there, rel=1e-12)
        assert point.change == pytest.approx(point.eta * np.linalg.norm(A @ g), rel=1e-12)
        assert point.smoothness == pytest.approx(np.linalg.norm(A @ g) / np.linalg.norm(g), rel=1e-12)
        after = A @ there
        assert point.cosine == pytest.approx(after @ g / np.linalg.norm(after) / np.linalg.norm(g), rel=1e-12)


def test_smoothness_along_an_eigenvector_is_its_eigenvalue() -> None:
    values, vectors = np.linalg.eigh(A)
    for value, vector in zip(values, vectors.T, strict=True):
        model = Vector(vector)
        (point,) = probe(model, quadratic, slope(model, quadratic), etas=(0.1,))
        assert point.smoothness == pytest.approx(value, rel=1e-10)


def test_every_point_is_reached_from_the_same_place() -> None:
    model = Vector(X)
    start = slope(model, quadratic)
    forth, back = (probe(model, quadratic, start, etas=order) for order in (ETAS, ETAS[::-1]))
    assert forth == back[::-1]


def test_the_norm_is_of_all_elements_together() -> None:
    assert norm_of([torch.tensor([3.0]), torch.tensor([[4.0], [12.0]])]) == 13.0


def test_a_norm_of_tiny_elements_is_not_lost() -> None:
    """Their squares are below float32's smallest number."""
    assert norm_of([torch.full((4,), 1e-30)]) == pytest.approx(2e-30, rel=1e-6, abs=0)


def test_a_parameter_without_gradient_stays_where_it_is() -> None:
    model = Vector(X)
    model.unused = nn.Parameter(torch.ones(2))
    model.frozen = nn.Parameter(torch.ones(5, dtype=torch.float64), requires_grad=False)
    start = slope(model, lambda one: quadratic(one) + (one.frozen * one.x).sum())
    assert list(start.gradient) == ["x", "unused"]
    assert start.gradient["unused"].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(start.gradient["x"], A @ X + 1, rtol=1e-13)
    (point,) = probe(model, lambda one: one.frozen.sum() + 0 * one.x.sum(), start, etas=(1.0,))
    assert point.loss == 5.0


def test_where_the_gradient_is_zero_there_is_no_smoothness() -> None:
    model = Vector(np.zeros(5))
    (point,) = probe(model, quadratic, slope(model, quadratic), etas=(1.0,))
    assert (point.loss, point.change) == (0.0, 0.0)
    assert math.isnan(point.smoothness) and math.isnan(point.cosine)


def test_a_step_into_infinity_is_a_point_of_infinity() -> None:
    model = Vector(X)
    (point,) = probe(model, lambda one: one.x.exp().sum(), slope(model, lambda one: -one.x.sum()), etas=(1e4,))
    assert point.loss == math.inf and not math.isfinite(point.change)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(36, 3))


def test_looking_changes_nothing() -> None:
    model, images = network(), torch.randn(6, 2, 5, 5)
    model(images).sum().backward()
    before = [tensor.clone() for tensor in (*model.state_dict().values(), *(one.grad for one in model.parameters()))]
    random = torch.get_rng_state()
    start = slope(model, lambda one: one(images).square().mean())
    probe(model, lambda one: one(images).square().mean(), start, etas=(0.1, 10.0))
    after = (*model.state_dict().values(), *(one.grad for one in model.parameters()))
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert model.training and all(one.requires_grad for one in model.parameters())


def test_random_numbers_are_those_of_the_step_at_every_point() -> None:
    model, images = network(), torch.randn(6, 2, 5, 5)
    start = slope(model, lambda one: one(images).square().mean())
    (point,) = probe(model, lambda one: one(images).square().mean(), start, etas=(0.0,))
    assert (point.loss, point.change) == (start.loss, 0.0)
    assert model(images).square().mean().item() == start.loss


def test_buffers_are_those_of_the_start_at_every_point() -> None:
    class Counting(Vector):
        def __init__(self) -> None:
            super().__init__(X)
            self.register_buffer("calls", torch.zeros(()))

    def loss(model):
        model.calls += 1
        return model.calls * quadratic(model)

    model = Counting()
    points = probe(model, loss, slope(model, loss), etas=(0.0, 0.0))
    assert [point.loss for point in points] == pytest.approx([0.5 * X @ A @ X] * 2)


def test_looking_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert slope(Vector(X), quadratic).norm > 0


def test_larger_weights_before_batch_norm_look_smoother_though_the_function_is_the_same() -> None:
    """With weights c w the gradient is g / c, and beta / c^2: only beta ||w||^2 tells two networks apart."""
    torch.manual_seed(0)
    images, direction = torch.randn(16, 3, 4, 4).double(), torch.randn(5).double()

    def loss(model):
        return (model(images).relu().mean((2, 3)) @ direction).square().mean()

    found = []
    for scale in (1.0, 3.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, eps=1e-300, affine=False)).double()
        model[0].weight.data *= scale
        start = slope(model, loss)
        (point,) = probe(model, loss, start, etas=(0.05 * scale**2,))
        found.append((start.loss, scale * start.norm, point.loss, scale * point.change, scale**2 * point.smoothness))
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert found[0][2] != pytest.approx(found[0][0], rel=1e-3)
