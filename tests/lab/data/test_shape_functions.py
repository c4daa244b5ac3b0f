import numpy as np
import pytest

from steadynorm.lab.data.shape_functions import SHAPES

AXIS = np.linspace(-1.2, 1.2, 241)
U, V = np.meshgrid(AXIS, AXIS)


def _inside(name: str, u: float, v: float) -> bool:
    return bool(SHAPES[name](np.array([u]), np.array([v]))[0] > 0)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fits_into_a_circle_little_larger_than_its_radius(name):
    distance = np.sqrt(U**2 + V**2)
    assert distance[SHAPES[name](U, V) > 0].max() < 1.2


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_covers_a_visible_part_of_its_circle(name):
    share = (SHAPES[name](U, V) > 0).sum() / (U**2 + V**2 < 1).sum()
    assert 0.2 < share < 0.95


def test_no_two_shapes_are_alike():
    masks = [function(U, V) > 0 for function in SHAPES.values()]
    for number, mask in enumerate(masks):
        for other in masks[number + 1 :]:
            assert (mask ^ other).sum() > 0.1 * mask.sum()


def test_a_ring_is_open():
    assert not _inside("ring", 0, 0)
    assert _inside("ring", 0.75, 0)


def test_a_square_has_corners_that_a_disc_lacks():
    assert _inside("square", 0.75, 0.75)
    assert not _inside("disc", 0.75, 0.75)


def test_a_star_has_notches_between_its_points():
    # Its points lie where the pentagon's sides are, and opposite to each is a notch.
    assert _inside("star", 0, 0.9) != _inside("star", 0, -0.9)
    assert _inside("star", 0, 0)


def test_a_star_has_five_points():
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    inside = SHAPES["star"](0.7 * np.cos(angles), 0.7 * np.sin(angles)) > 0
    assert (inside & ~np.roll(inside, 1)).sum() == 5


def test_bars_are_three():
    inside = SHAPES["bars"](AXIS, np.zeros_like(AXIS)) > 0
    assert (inside & ~np.roll(inside, 1)).sum() == 3


def test_a_crescent_lacks_one_side():
    assert _inside("crescent", -0.6, 0)
    assert not _inside("crescent", 0.6, 0)
