import pytest
import torch

from steadynorm.rules import BatchNormRule, CenterScaleShift
from steadynorm.statistics import Moments

CHANNELS = 5
each_combination = pytest.mark.parametrize(
    ("with_weight", "with_bias"), [(True, True), (True, False), (False, True), (False, False)]
)


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arguments(with_weight: bool, with_bias: bool) -> tuple[Moments, torch.Tensor | None, torch.Tensor | None]:
    moments = Moments(mean=drawn(0), var=drawn(1).square(), count=7)
    return moments, drawn(2) if with_weight else None, drawn(3) if with_bias else None


@each_combination
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_backward_is_the_gradient_of_the_forward(with_weight, with_bias, eps):
    moments, *parameters = arguments(with_weight, with_bias)
    upstream = CenterScaleShift(drawn(4), drawn(5), drawn(6))
    leaves = [
        None if tensor is None else tensor.clone().requires_grad_()
        for tensor in (moments.mean, moments.var, *parameters)
    ]
    rule = BatchNormRule(eps)
    affine = rule.forward(Moments(mean=leaves[0], var=leaves[1], count=7), *leaves[2:])
    # A sum of products keeps the graph whole where shift is a constant.
    loss = sum((part * gradient).sum() for part, gradient in zip(affine, upstream, strict=True))
    wanted = [leaf for leaf in leaves if leaf is not None]
    expected = iter(torch.autograd.grad(loss, wanted))
    d_mean, d_var, d_parameters = rule.backward(upstream, moments, *parameters)
    for leaf, gradient in zip(leaves, (d_mean, d_var, *d_parameters), strict=True):
        if leaf is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, next(expected), rtol=1e-13, atol=1e-13)


def test_forward_of_known_numbers():
    moments = Moments(mean=torch.tensor([3.0]), var=torch.tensor([3.0]), count=4)
    affine = BatchNormRule(1.0).forward(moments, torch.tensor([6.0]), torch.tensor([7.0]))
    assert [part.item() for part in affine] == [3.0, 3.0, 7.0]


def test_without_parameters_weight_is_one_and_bias_zero():
    moments, *_ = arguments(False, False)
    rule = BatchNormRule(1e-5)
    ones, zeros = torch.ones(CHANNELS).double(), torch.zeros(CHANNELS).double()
    for without, given in zip(rule.forward(moments, None, None), rule.forward(moments, ones, zeros), strict=True):
        assert torch.equal(without, given)


def test_half_precision_parameters_give_float32_numbers_and_half_precision_gradients():
    moments = Moments(mean=drawn(0, torch.float32), var=drawn(1, torch.float32).square(), count=7)
    parameters = (drawn(2, torch.bfloat16), drawn(3, torch.bfloat16))
    rule = BatchNormRule(1e-5)
    affine = rule.forward(moments, *parameters)
    assert {part.dtype for part in affine} == {torch.float32}
    _, _, gradients = rule.backward(affine, moments, *parameters)
    assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.bfloat16}
    assert len(gradients) == 2


def test_zero_variance_is_scaled_by_eps_alone():
    moments = Moments(mean=torch.zeros(1), var=torch.zeros(1), count=4)
    assert BatchNormRule(0.25).forward(moments, None, None).scale.item() == 2.0
