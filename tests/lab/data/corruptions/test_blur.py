import math

import numpy as np
import pytest

from steadynorm.lab.data.corruptions.blur import defocus_blur, gaussian_blur, motion_blur, zoom_blur


class _Angles:
    """Random numbers that are known."""

    def __init__(self, *angles):
        self.angles = np.array(angles)

    def uniform(self, low, high, count):
        assert (low, high, count) == (-45, 45, len(self.angles))
        return self.angles


def _dot(row=16, column=16, count=1):
    """One light in the dark: what comes out is the mirrored kernel."""
    pixels = np.zeros((count, 32, 32, 3))
    pixels[:, row, column] = 1
    return pixels


def _lit(blurred, number=0):
    """Where there is light, relative to the middle, and how much."""
    plane = blurred[number, :, :, 0]
    return {(row - 16, column - 16): plane[row, column] for row, column in zip(*np.nonzero(plane > 1e-12), strict=True)}


def _ramp():
    """Each row lighter than the one above by 1 / 32."""
    return np.broadcast_to(np.arange(32.0)[:, None, None] / 32, (1, 32, 32, 3))


def test_defocus_of_one_and_a_half_pixels_averages_nine():
    expected = {(down, right): pytest.approx(1 / 9) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    assert _lit(defocus_blur(_dot(), None, 1.5, 0.1)) == expected


def test_defocus_of_one_pixel_averages_a_cross_of_five():
    lit = _lit(np.round(defocus_blur(_dot(), None, 1.0, 0.2), 4))
    assert lit == dict.fromkeys([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)], 0.2)


def test_defocus_below_one_pixel_is_the_softening_alone():
    beside = math.exp(-1 / (2 * 0.4**2))
    lit = _lit(defocus_blur(_dot(), None, 0.3, 0.4))
    assert lit[0, 0] == pytest.approx(1 / (1 + 2 * beside) ** 2)
    assert lit[0, 1] == pytest.approx(beside / (1 + 2 * beside) ** 2)


def test_defocus_mirrors_the_image_at_its_border():
    # Of the cross, three are at row 0, and both the one below and the mirrored one above are as light as row 1.
    assert defocus_blur(_ramp(), None, 1.0, 0.2)[0, 0, 5, 0] * 32 == pytest.approx(2 / 5, abs=1e-4)


def test_gaussian_blur_of_a_dot_is_the_bell_curve():
    bell = {step: math.exp(-(step**2) / 2) for step in range(-4, 5)}
    total = sum(bell.values())
    lit = _lit(gaussian_blur(_dot(), None, 1.0))
    assert lit == {(d, r): pytest.approx(bell[d] * bell[r] / total**2) for d in bell for r in bell}


def test_gaussian_blur_continues_the_border():
    bell = np.array([math.exp(-(step**2) / (2 * 0.4**2)) for step in range(-2, 3)])
    expected = bell @ [0, 0, 0, 1, 2] / bell.sum()
    assert gaussian_blur(_ramp(), None, 0.4)[0, 0, 5, 0] * 32 == pytest.approx(expected)


def test_motion_to_the_right_brings_the_light_from_there():
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 1.5**2))
    lit = _lit(motion_blur(_dot(), _Angles(0.0), 6, 1.5))
    # Weights below 1e-12 are left out of what counts as lit.
    assert lit == {
        (0, -step): pytest.approx(weight)
        for step, weight in enumerate(weights / weights.sum())
        if weight / weights.sum() > 1e-12
    }


def test_motion_at_an_angle_passes_through_the_nearest_pixels():
    # Points (0, 0), (0.87, 0.49), (1.74, 0.98), (2.62, 1.47), (3.49, 1.95) to the right and down.
    lit = _lit(motion_blur(_dot(), _Angles(29.2), 2, 2.0))
    assert sorted(lit) == sorted([(0, 0), (0, -1), (-1, -2), (-1, -3), (-2, -3)])


def test_motion_weights_sum_to_one():
    assert motion_blur(_dot(), _Angles(20.0), 9, 2.5).sum() == pytest.approx(3)


def test_each_image_moves_at_its_own_angle():
    lit = [_lit(motion_blur(_dot(count=2), _Angles(0.0, 45.0), 6, 1.0), number) for number in (0, 1)]
    assert (0, -2) in lit[0] and (-1, -1) in lit[1]
    assert (-1, -1) not in lit[0] and (0, -2) not in lit[1]


def test_motion_continues_the_border():
    # Everything to the right of the last column is as light as that column.
    pixels = np.zeros((1, 32, 32, 3))
    pixels[:, :, 31] = 1
    assert motion_blur(pixels, _Angles(0.0), 6, 2.0)[0, 3, 31, 0] == pytest.approx(1)


def _enlarged(plane, factor):
    """Cut out the middle, enlarge it by linear interpolation, and cut out the middle again."""
    shown = [math.ceil(size / factor) for size in plane.shape]
    enlarged = [round(size * factor) for size in shown]
    (top, left), (above, before) = (
        [(whole - part) // 2 for whole, part in zip(*sizes, strict=True)]
        for sizes in ((plane.shape, shown), (enlarged, plane.shape))
    )
    middle = plane[top : top + shown[0], left : left + shown[1]]
    down, right = (np.linspace(0, part - 1, size) for part, size in zip(shown, enlarged, strict=True))
    tall = np.stack([np.interp(down, np.arange(shown[0]), column) for column in middle.T], axis=1)
    whole = np.stack([np.interp(right, np.arange(shown[1]), row) for row in tall])
    return whole[above : above + plane.shape[0], before : before + plane.shape[1]]


@pytest.mark.parametrize("steps", [7, 26])
def test_zoom_blur_averages_the_image_and_its_enlargements(steps):
    pixels = np.random.default_rng(0).random((2, 32, 32, 3))
    plane = pixels[1, :, :, 2]
    pictures = [plane] + [_enlarged(plane, 1 + step / 100) for step in range(steps)]
    np.testing.assert_allclose(zoom_blur(pixels, None, steps)[1, :, :, 2], np.mean(pictures, axis=0), rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 12), (40, 33)])
def test_zoom_blur_enlarges_height_and_width_alike(shape):
    pixels = np.random.default_rng(0).random((1, *shape, 1))
    plane = pixels[0, :, :, 0]
    pictures = [plane] + [_enlarged(plane, 1 + step / 100) for step in range(26)]
    np.testing.assert_allclose(zoom_blur(pixels, None, 26)[0, :, :, 0], np.mean(pictures, axis=0), rtol=1e-12)


def test_a_large_picture_is_out_of_focus_over_more_pixels_and_no_lighter():
    pixels = np.zeros((1, 96, 96, 1))
    pixels[:, 48, 48] = 1
    blurred = defocus_blur(pixels, None, 1.5, 0.1)[0, :, :, 0]
    assert blurred.sum() == pytest.approx(1)
    assert np.argwhere(blurred[48] > 0.01)[[0, -1], 0].tolist() == [44, 52]  # 1.5 pixels of 32 are 4.5 of 96
