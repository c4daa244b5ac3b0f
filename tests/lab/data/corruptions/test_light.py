import colorsys

import numpy as np
import pytest

from steadynorm.lab.data.corruptions.light import brightness, contrast, fog, saturate


def _colours():
    """Random colours, and black, white and grey."""
    pixels = np.random.default_rng(0).random((1, 32, 32, 3))
    pixels[0, 0, :3] = np.array([0.0, 1.0, 0.5])[:, None]
    return pixels


def _through_hsv(pixels, change):
    flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*colour))) for colour in pixels.reshape(-1, 3)]
    return np.array(flat).reshape(pixels.shape)


def test_brightness_adds_to_the_value():
    expected = _through_hsv(_colours(), lambda hue, saturation, value: (hue, saturation, min(value + 0.3, 1)))
    np.testing.assert_allclose(brightness(_colours(), None, 0.3), expected, atol=1e-12)


@pytest.mark.parametrize(("factor", "offset"), [(0.1, 0.0), (1.5, 0.0), (2.5, 0.2)])
def test_saturate_changes_the_saturation(factor, offset):
    expected = _through_hsv(
        _colours(), lambda hue, saturation, value: (hue, min(saturation * factor + offset, 1), value)
    )
    np.testing.assert_allclose(saturate(_colours(), None, factor, offset), expected, atol=1e-12)


def test_contrast_shrinks_the_distance_from_the_mean_of_image_and_channel():
    pixels = np.zeros((2, 32, 32, 3))
    pixels[0, :16, :, 1] = 0.8  # mean 0.4
    pixels[1] = 0.6
    changed = contrast(pixels, None, 0.25)
    assert changed[0, 0, 0].tolist() == pytest.approx([0, 0.5, 0])
    assert changed[0, 31, 0].tolist() == pytest.approx([0, 0.3, 0])
    assert changed[1, 0, 0].tolist() == pytest.approx([0.6, 0.6, 0.6])


def _clouds(pixels, foggy, thickness):
    lightest = pixels.max(axis=(1, 2, 3), keepdims=True)
    return (foggy * (lightest + thickness) / lightest - pixels) / thickness


def test_fog_adds_clouds_between_nothing_and_its_thickness():
    pixels = np.random.default_rng(0).random((3, 32, 32, 3)) * np.array([1, 0.7, 0.2])[:, None, None, None]
    clouds = _clouds(pixels, fog(pixels, np.random.default_rng(1), 1.5, 1.75), 1.5)
    for picture in clouds:
        assert (picture.min(), picture.max()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))


def test_fog_is_colourless():
    pixels = np.random.default_rng(0).random((1, 32, 32, 3))
    clouds = _clouds(pixels, fog(pixels, np.random.default_rng(1), 0.5, 3), 0.5)
    np.testing.assert_allclose(clouds[..., 0], clouds[..., 2], atol=1e-12)


class _Noise:
    """Random numbers that are known: 0, but for some places."""

    def __init__(self, places):
        self.places = places

    def uniform(self, low, high, shape):
        assert (low, high) == (-1, 1)
        noise = np.zeros(shape)
        for (row, column), value in self.places.items():
            noise[:, row, column] = value
        return noise


def _heights(places, decay):
    """Clouds over a white image: there, the fog's formula is (1 + clouds) / 2 at thickness 1."""
    return 2 * fog(np.ones((1, 32, 32, 3)), _Noise(places), 1, decay)[0, :, :, 0] - 1


def test_a_cloud_is_interpolated_between_coarse_points():
    heights = _heights({(16, 16): 1.0}, 2)
    assert heights[16, 16] == pytest.approx(1)
    assert heights[0, 0] == pytest.approx(0)
    # Two of the four neighbours of these, 16 away and across the border, are the middle; two are the corner.
    assert (heights[0, 16], heights[16, 0]) == (pytest.approx(0.5), pytest.approx(0.5))
    # Diagonal neighbours 0, 1/2, 1/2, 1.
    assert heights[8, 8] == pytest.approx(0.5)
    # Neighbours above and below 1/2 each, left 0, right 1/2.
    assert (heights[0, 8], heights[8, 0]) == (pytest.approx(0.375), pytest.approx(0.375))


def test_a_point_raises_its_four_neighbours_by_a_quarter():
    raised = _heights({(16, 16): 1.0, (4, 4): 0.2}, 1) - _heights({(16, 16): 1.0}, 1)
    found = {(row, column): raised[row, column] for row in range(0, 32, 4) for column in range(0, 32, 4)}
    expected = {(4, 4): 0.2, **dict.fromkeys([(0, 4), (8, 4), (4, 0), (4, 8)], 0.05)}
    assert found == {place: pytest.approx(expected.get(place, 0)) for place in found}


def test_points_between_two_of_one_row_lie_on_that_row():
    # Left and right of (0, 8) are 0 and 0.75, above and below 0.5625; above and below (8, 0) are 0 and 0.5.
    heights = _heights({(16, 16): 1.0, (0, 16): 0.25}, 1)
    assert (heights[0, 8], heights[8, 0]) == (pytest.approx(0.46875), pytest.approx(0.40625))


def test_finer_clouds_are_paler_by_the_square_of_the_decay():
    heights = _heights({(16, 16): 1.0, (8, 8): 1.0}, 2)
    assert heights[8, 8] == pytest.approx(0.5 + 1 / 4)


def test_noise_reaches_every_point_of_the_clouds_but_the_corner():
    flat = _heights({(16, 16): 1.0}, 2)
    for place in [(0, 16), (16, 0), (8, 24), (0, 8), (24, 0), (31, 31), (30, 31), (31, 30)]:
        assert _heights({(16, 16): 1.0, place: 0.3}, 1)[place] > flat[place]


def test_one_channel_is_brightened_and_has_no_saturation():
    pixels = np.random.default_rng(0).random((1, 5, 7, 1))
    np.testing.assert_allclose(brightness(pixels, None, 0.3), np.minimum(pixels + 0.3, 1), rtol=1e-12)
    assert np.array_equal(saturate(pixels, None, 2.5, 0.2), pixels)


def test_fog_of_another_size_is_a_part_of_the_next_power_of_two():
    pixels = np.ones((1, 28, 30, 1))
    whole = fog(np.ones((1, 32, 32, 1)), np.random.default_rng(1), 1.5, 1.75)
    assert np.array_equal(fog(pixels, np.random.default_rng(1), 1.5, 1.75), whole[:, :28, :30])
