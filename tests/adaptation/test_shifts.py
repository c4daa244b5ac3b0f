import pytest
import torch
from torch import Tensor

from steadynorm.adaptation.shifts import SHIFTS, shifts_of


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def shifted(name: str, x: Tensor, strength: float, seed: int = 0) -> Tensor:
    return SHIFTS[name](x, strength, float(x.std()), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SHIFTS)
def test_images_change_more_with_more_strength_and_keep_shape_and_type(name: str) -> None:
    x = inputs(40, 3, 12, 12).double()
    weak, strong = (shifted(name, x, strength) for strength in (0.2, 1.0))
    assert strong.shape == x.shape and strong.dtype == x.dtype and strong.isfinite().all()
    assert 0 < (weak - x).square().mean() < (strong - x).square().mean()
    assert torch.equal(strong, shifted(name, x, 1.0))


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 20)])
def test_inputs_that_are_no_images_are_shifted_by_what_suits_them(shape: tuple[int, ...]) -> None:
    x = inputs(*shape)
    assert list(shifts_of(x)) == ["noise", "values", "contrast", "offset", "channels"]
    for name in shifts_of(x):
        assert shifted(name, x, 0.9).shape == x.shape


def test_tokens_are_not_shifted() -> None:
    assert shifts_of(torch.arange(6).view(2, 3)) == {}


def test_contrast_is_pulled_to_the_mean_of_each_image() -> None:
    x = inputs(4, 3, 6, 6)
    found = shifted("contrast", x, 1.0)
    torch.testing.assert_close(found.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(found.var((1, 2, 3)), 0.01 * x.var((1, 2, 3)))


def test_noise_is_in_units_of_the_clean_inputs() -> None:
    x = 7 * inputs(50, 3, 8, 8)
    assert (shifted("noise", x, 0.5) - x).std() == pytest.approx(0.6 * float(x.std()), rel=0.05)


def test_an_offset_keeps_the_range() -> None:
    x = inputs(4, 3, 6, 6)
    found = shifted("offset", x, 1.0)
    assert found.amin() >= x.amin() and found.amax() <= x.amax()


def test_channels_move_alike_in_all_inputs() -> None:
    step = shifted("channels", torch.zeros(4, 3, 6, 6) + inputs(1, 3, 6, 6), 1.0)
    assert torch.equal(step[:1].expand_as(step), step)


@pytest.mark.parametrize("name", ["blur", "coarse"])
def test_detail_is_lost_and_the_mean_stays(name: str) -> None:
    x = inputs(4, 3, 12, 12)
    found = shifted(name, x, 1.0)
    assert found.var() < 0.3 * x.var()
    torch.testing.assert_close(found.mean(), x.mean(), atol=0.05, rtol=0)
