import pytest
import torch
from torch import nn

from steadynorm import BatchNorm2d
from steadynorm.lab.networks import build_network
from steadynorm.lab.noisy_batch_norm import LARGEST_SCALING, LARGEST_SHIFT, ChannelNoise, add_noise_
from steadynorm.reporting.failure import UserError

NETWORK = {"depth": 2, "widths": (4, 8), "classes": 10, "seed": 0}


def drawn(steps: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of each channel at each step, shape (steps, C), from the outputs for zeros and ones."""
    noise, x = ChannelNoise(), torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])
    torch.manual_seed(0)
    y = torch.stack([noise(x) for _ in range(steps)])
    assert torch.equal(y[..., 0], y[..., 1])
    return y[:, 1, :, 0] - y[:, 0, :, 0], y[:, 0, :, 0]


def test_scales_and_shifts_are_uniform_within_their_bounds() -> None:
    scale, shift = drawn()
    for values, centre, bound in ((scale, 1.0, LARGEST_SCALING), (shift, 0.0, LARGEST_SHIFT)):
        assert (values - centre).abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert (values - centre).abs().max().item() <= bound + 1e-6
        assert values.mean().item() == pytest.approx(centre, abs=0.02 * bound)
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_channels_and_steps_are_drawn_independently() -> None:
    scale, shift = drawn()
    together = torch.cat([scale, shift], dim=1).T.corrcoef()
    assert (together - torch.eye(6)).abs().max() < 0.06
    assert torch.stack([shift[1:, 0], shift[:-1, 0]]).corrcoef()[0, 1].abs() < 0.06


def test_evaluation_is_without_noise_and_draws_nothing() -> None:
    x, before = torch.randn(2, 3, 4, 4), torch.get_rng_state()
    assert ChannelNoise().eval()(x) is x
    assert torch.equal(before, torch.get_rng_state())


def test_the_noise_of_bfloat16_is_that_of_float32_rounded() -> None:
    x = torch.ones(2, 40, 4, 4)
    torch.manual_seed(0)
    exact = ChannelNoise()(x)
    torch.manual_seed(0)
    scale, shift = (2 * torch.rand(2, 1, 40, 1, 1) - 1).bfloat16()
    torch.manual_seed(0)
    found = ChannelNoise()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.addcmul(shift / 2, x.bfloat16(), 1 + scale / 4))
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-7)


def test_the_noise_stands_between_batch_norm_and_its_activation() -> None:
    norm = BatchNorm2d(4, activation="relu")
    model = add_noise_(nn.Sequential(norm))
    x, residual = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    torch.manual_seed(5)
    y = model[0](x, residual)
    torch.manual_seed(5)
    normalized = nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y, (ChannelNoise()(normalized) + residual).relu())


def test_a_network_with_noise_is_batch_norms_in_evaluation() -> None:
    plain, noisy = (build_network("cnn", arm="batch_norm", **NETWORK).eval() for _ in range(2))
    x = torch.randn(4, 3, 32, 32)
    expected = plain(x)
    assert add_noise_(noisy) is noisy
    assert sum(isinstance(module, ChannelNoise) for module in noisy.modules()) == 2
    torch.testing.assert_close(noisy(x), expected)
    assert not torch.allclose(noisy.train()(x), plain.train()(x))


def test_a_network_without_batch_norm_of_images_is_refused() -> None:
    with pytest.raises(UserError, match="--arms: noisy_batch_norm needs a batch norm of images"):
        add_noise_(build_network("cnn", arm="none", **NETWORK))
