"""RGB composites: the right bands whatever their order, a stretch by percentile, gray where nothing was measured."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from specfast.report.composites import hide_patches, rgb_bands, rgb_composite, shared_limits
from specfast.report.style import MASKED


def test_bands_are_nearest_whatever_their_order():
    wavelength = np.array([900.0, 552.0, 471.0, 640.0, 655.0, 545.0])
    assert rgb_bands(wavelength) == (4, 1, 2)
    order = np.array([3, 5, 0, 2, 4, 1])
    assert [order[i] for i in rgb_bands(wavelength[order])] == [4, 1, 2]


def test_bad_bands_are_not_taken():
    wavelength = np.array([650.0, 655.0, 550.0, 470.0])
    assert rgb_bands(wavelength, good=[False, True, True, True]) == (1, 2, 3)


def test_a_missing_color_names_the_nearest_band():
    with pytest.raises(ValueError, match="470 nm; the nearest is band 1 at 550 nm"):
        rgb_bands([650.0, 550.0])


def test_stretch_is_by_percentile_of_each_color():
    rng = np.random.default_rng(0)
    cube = rng.normal([[[5.0]], [[50.0]], [[500.0]]], [[[1.0]], [[10.0]], [[100.0]]], size=(3, 200, 200))
    picture = rgb_composite(cube, [650.0, 550.0, 470.0])
    assert picture.shape == (200, 200, 3)
    for color in range(3):
        assert (picture[..., color] == 0).mean() == pytest.approx(0.02, abs=0.002)
        assert (picture[..., color] == 1).mean() == pytest.approx(0.02, abs=0.002)
        low, high = np.percentile(cube[color], [2, 98])
        middle = (cube[color] - low) / (high - low)
        inside = (middle > 0) & (middle < 1)
        np.testing.assert_allclose(picture[..., color][inside], middle[inside], atol=1e-5)


def test_limits_of_the_input_show_a_darker_reconstruction():
    cube = np.linspace(0, 1, 3 * 16 * 16).reshape(3, 16, 16)
    wavelength = [650.0, 550.0, 470.0]
    limits = shared_limits(cube, (0, 1, 2))
    assert rgb_composite(cube * 0.8, wavelength, limits=limits).mean() < rgb_composite(cube, wavelength).mean() - 0.05
    np.testing.assert_allclose(rgb_composite(cube, wavelength, limits=limits), rgb_composite(cube, wavelength))


def test_invalid_and_non_finite_pixels_are_gray_and_do_not_stretch():
    cube = np.random.default_rng(1).random((3, 10, 10))
    clean = rgb_composite(cube, [650.0, 550.0, 470.0], valid=np.arange(100).reshape(10, 10) > 1)
    cube[0, 0, 0] = np.nan
    cube[:, 0, 1] = 1e9
    valid = np.ones((10, 10), bool)
    valid[0, 1] = False
    picture = rgb_composite(cube, [650.0, 550.0, 470.0], valid=valid)
    np.testing.assert_allclose(picture[0, :2], np.array([to_rgb(MASKED)] * 2), atol=1e-6)
    np.testing.assert_allclose(picture[1:], clean[1:], atol=1e-6)


def test_constant_image_does_not_divide_by_zero():
    assert np.isfinite(rgb_composite(np.ones((3, 4, 4)), [650.0, 550.0, 470.0])).all()


def test_wrong_shapes_and_no_valid_pixel_are_named():
    with pytest.raises(ValueError, match=r"cube: expected \[C=2, H, W\]"):
        rgb_composite(np.zeros((3, 4, 4)), [650.0, 550.0])
    with pytest.raises(ValueError, match="no valid pixel"):
        rgb_composite(np.full((3, 4, 4), np.nan), [650.0, 550.0, 470.0])


def test_hidden_patches_are_the_masked_ones_in_raster_order():
    picture = np.zeros((6, 9, 3))
    mask = np.zeros((2, 3), bool)
    mask[0, 2] = True
    hidden = hide_patches(picture, mask, 3)
    np.testing.assert_allclose(hidden[0:3, 6:9], np.broadcast_to(to_rgb(MASKED), (3, 3, 3)))
    hidden[0:3, 6:9] = 0
    assert not hidden.any()
    assert not picture.any()
    with pytest.raises(ValueError, match="mask: expected"):
        hide_patches(picture, mask, 2)
