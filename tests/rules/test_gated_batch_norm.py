import pytest
import torch

from steadynorm.rules import BatchNormRule, CenterScaleShift, GatedBatchNormRule
from steadynorm.rules.gated_batch_norm import gate
from steadynorm.statistics import Moments

CHANNELS = 5


def drawn(seed: int, size: int = CHANNELS) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(*, with_weight: bool = True, with_bias: bool = True, far: float = 1.0) -> tuple:
    moments = Moments(mean=drawn(0) * far, var=drawn(1).square(), count=7)
    noise, confidence = torch.tensor(0.1, dtype=torch.float64), drawn(7, 3) * 0.3
    stored = drawn(8), drawn(9).square() + 0.1
    return moments, [drawn(2) if with_weight else None, drawn(3) if with_bias else None, *stored, noise, confidence]


@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("fixed_gate", [None, 0.0, 0.3, 1.0])
def test_backward_is_the_gradient_of_the_forward(with_weight, with_bias, fixed_gate):
    moments, parameters = arguments(with_weight=with_weight, with_bias=with_bias)
    upstream = CenterScaleShift(drawn(4), drawn(5), drawn(6))
    rule = GatedBatchNormRule(1e-2, fixed_gate)
    mean, var = moments.mean.clone().requires_grad_(), moments.var.clone().requires_grad_()
    learned = [None if p is None else p.clone().requires_grad_() for p in (*parameters[:2], parameters[5])]
    given = [*learned[:2], *parameters[2:5], learned[2]]
    affine = rule.forward(Moments(mean=mean, var=var, count=7), *given)
    loss = sum((part * gradient).sum() for part, gradient in zip(affine, upstream, strict=True))
    wanted = [leaf for leaf in (mean, var, *learned) if leaf is not None]
    expected = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    d_mean, d_var, d_parameters = rule.backward(upstream, moments, *parameters)
    assert d_parameters[2:5] == (None, None, None)
    for leaf, actual in zip((mean, var, *learned), (d_mean, d_var, *d_parameters[:2], d_parameters[5]), strict=True):
        exact = None if leaf is None else next(expected)
        assert (actual is None) == (exact is None)
        if exact is not None:
            torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)


def test_an_open_gate_is_batch_norm():
    moments, parameters = arguments()
    open_gate = GatedBatchNormRule(1e-5, 1.0).forward(moments, *parameters)
    for one, other in zip(open_gate, BatchNormRule(1e-5).forward(moments, *parameters[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


def test_a_shut_gate_is_the_affine_map_of_the_stored_statistics():
    moments, parameters = arguments()
    stored = Moments(mean=parameters[2], var=parameters[3], count=7)
    shut = GatedBatchNormRule(1e-5, 0.0).forward(moments, *parameters)
    for one, other in zip(shut, BatchNormRule(1e-5).forward(stored, *parameters[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("distance", "noise", "weight"), [(0.1, 0.1, 0.0), (0.05, 0.1, 0.0), (0.2, 0.1, 0.5), (1.0, 0.1, 0.9)]
)
def test_without_confidence_the_weight_is_drift_over_drift_and_noise(distance, noise, weight):
    assert gate(torch.tensor(distance), torch.tensor(noise), None).item() == pytest.approx(weight, abs=1e-6)
    assert gate(torch.tensor(distance), torch.tensor(noise), torch.zeros(3)).item() == pytest.approx(weight, abs=1e-6)


def test_confidence_multiplies_the_odds():
    distance, noise = torch.tensor(0.4), torch.tensor(0.1)
    g = gate(distance, noise, torch.tensor([0.5, 0.25, 0.125])).item()
    odds = 3 * torch.exp(0.5 + 0.25 * torch.tensor(4.0).log() + 0.125 * torch.tensor(10.0).log()).item()
    assert g == pytest.approx(odds / (1 + odds))


def test_the_prior_errs_at_most_two_channels_noise_more_than_the_best_weight():
    """The oracle inequality of James and Stein: stored means off by a known drift, batch means of a known variance."""
    generator = torch.Generator().manual_seed(0)
    for drift, noise in ((0.5, 0.2), (0.1, 0.2), (1.5, 0.1)):
        truth = torch.randn(400, 256, generator=generator, dtype=torch.float64) * drift
        batch = truth + torch.randn(400, 256, generator=generator, dtype=torch.float64) * noise**0.5
        weights = torch.stack(
            [gate(one.square().mean(), torch.tensor(noise, dtype=torch.float64), None) for one in batch]
        )

        def error(weight, batch=batch, truth=truth):
            return (weight * batch - truth).square().mean().item()

        best = min(error(w) for w in torch.linspace(0, 1, 101).tolist())
        assert error(weights[:, None]) <= best + 2 * noise / 256
