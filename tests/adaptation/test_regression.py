import torch
from torch import Tensor

from steadynorm.adaptation.regression import LENGTH, LINEAR, Regression, left_out


def examples(count: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)).double()
    return x, torch.sin(4 * x[:, 0]) + x[:, 1]


def test_a_smooth_function_is_learned() -> None:
    x, y = examples()
    fitted = Regression.fit(x[:50], y[:50], torch.ones(50).double(), ridge=0.01)
    assert (fitted(x[50:]) - y[50:]).abs().max() < 0.1


def test_it_solves_the_ridge_regression_of_its_kernel() -> None:
    """The gradient of Σ importance·(f − y)² + ridge·wᵀKw is nothing, with K written out."""
    x, y = examples(9)
    importance = torch.arange(1, 10).double()
    fitted = Regression.fit(x, y, importance, ridge=0.5)
    z = (x - x.mean(0)) / (x.std(0, correction=0) + 1e-6)
    kernel = torch.tensor(
        [
            [float(torch.exp(-(a - b).square().sum() / (2 * LENGTH**2 * 2)) + LINEAR * torch.dot(a, b) / 2) for b in z]
            for a in z
        ],
        dtype=torch.float64,
    )
    gradient = kernel @ (importance * (kernel @ fitted.weights + fitted.level - y) + 0.5 * fitted.weights)
    assert gradient.abs().max() < 1e-8


def test_what_is_beyond_the_examples_counts_as_the_outermost() -> None:
    x, y = examples()
    fitted = Regression.fit(x, y, torch.ones(60).double(), ridge=0.1)
    edge = torch.stack((x[:, 0].max(), x[:, 1].min()))[None]
    assert torch.equal(fitted(edge + torch.tensor([[9.0, -9.0]])), fitted(edge))


def test_examples_of_a_group_are_predicted_by_the_others() -> None:
    x, y = examples()
    groups = ["a"] * 20 + ["b"] * 40
    importance = torch.ones(60).double()
    found = left_out(x, y, importance, ridge=0.1, groups=groups)
    others = Regression.fit(x[20:], y[20:], importance[20:], ridge=0.1)
    torch.testing.assert_close(found[:20], others(x[:20]))
