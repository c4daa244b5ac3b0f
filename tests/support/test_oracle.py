"""The oracle itself, against differences of its own forward and against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from tests.support import oracle
from tests.support.cases import CASES, each_case, make_inputs

STEP = 1e-6


def tensors(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (3, 2, 4), "residual": (3, 2, 4), "weight": (2,), "bias": (2,)}
    return {name: torch.randn(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}


def difference_quotients(name: str, dy: np.ndarray, inputs: dict[str, torch.Tensor], activation: str | None):
    def loss(offset: torch.Tensor) -> float:
        moved = inputs | {name: inputs[name] + offset}
        return float((dy * oracle.batch_norm(**moved, activation=activation).y).sum())

    quotients = np.empty(inputs[name].shape)
    for index in np.ndindex(*quotients.shape):
        offset = torch.zeros_like(inputs[name])
        offset[index] = STEP
        quotients[index] = (loss(offset) - loss(-offset)) / (2 * STEP)
    return quotients


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("name", ["x", "residual", "weight", "bias"])
def test_gradients_match_central_differences(name, activation):
    inputs = tensors()
    dy = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert abs(oracle.batch_norm(**inputs).before_activation).min() > 1e-3, "a kink is too near"
    gradients = oracle.batch_norm_gradients(dy, **inputs, activation=activation)
    expected = difference_quotients(name, dy.numpy(), inputs, activation)
    np.testing.assert_allclose(getattr(gradients, f"d{name}"), expected, rtol=0, atol=1e-7)


def test_two_values_normalize_to_plus_and_minus_one():
    result = oracle.batch_norm(torch.tensor([[1.0], [5.0]]), eps=0.0)
    np.testing.assert_array_equal(result.y, [[-1.0], [1.0]])
    assert (result.mean, result.var, result.var_unbiased) == (3.0, 4.0, 8.0)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("relu", [0.0, 2.0]), ("leaky_relu", [-0.01, 2.0]), ("silu", [-0.2689414213699951, 1.7615941559557646])],
)
def test_activations_at_known_points(activation, expected):
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    y = oracle.batch_norm(x, residual=torch.tensor([[0.0], [1.0]]), activation=activation, eps=0.0).y
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-15)


def test_an_error_of_more_than_twice_torchs_is_refused():
    truth = np.zeros(3)
    native, ours = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 2.01])
    with pytest.raises(AssertionError, match=r"dx: torch.float32 \(3,\): error 2.01 is 2.01 times torch's 1"):
        oracle.assert_as_accurate_as(native=native, ours=ours, oracle=truth, what="dx")


def test_nan_in_our_result_is_refused():
    with pytest.raises(AssertionError, match="error nan"):
        oracle.assert_as_accurate_as(
            native=torch.tensor([1.0]), ours=torch.tensor([float("nan")]), oracle=np.zeros(1), what="y"
        )


@each_case
def test_upstream_gradients_are_random(case):
    dy = make_inputs(case).dy
    assert dy.ne(0).float().mean() > 0.5


def test_layouts_are_what_they_say():
    strides = {case.id: make_inputs(case).x.stride() for case in CASES}
    assert strides["channels-last-2d"] == (90, 1, 18, 6)
    assert strides["transposed"] == (1, 20, 4, 120)
    assert strides["sliced"] == (1440, 120, 12, 2)
    assert strides["expanded"][-1] == 0
