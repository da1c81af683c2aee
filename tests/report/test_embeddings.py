"""Embeddings as colors: the strongest axes, the same every time, also block by block."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.image import imread

from specfast import report
from specfast.report.style import MASKED


def embedding(seed=0, channels=12, height=20, width=30):
    """Three strong factors of falling strength, and noise."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(channels, 3)))[0]
    factors = rng.normal(size=(3, height, width)) * np.array([9.0, 4.0, 2.0])[:, None, None]
    return np.tensordot(axes, factors, 1) + 0.01 * rng.normal(size=(channels, height, width)) + 5, factors


def test_colors_are_the_strongest_components_in_order():
    cube, factors = embedding()
    colors = report.PcaColors.fit(cube.reshape(12, -1).T)
    picture = colors(cube)
    assert picture.shape == (20, 30, 3)
    for color in range(3):
        inside = (picture[..., color] > 0) & (picture[..., color] < 1)
        assert abs(np.corrcoef(picture[..., color][inside], factors[color][inside])[0, 1]) > 0.99
        assert 0.01 < (picture[..., color] == 0).mean() < 0.03
    share = np.square(factors).mean(axis=(1, 2))
    np.testing.assert_allclose(colors.explained, share / share.sum(), atol=0.02)
    np.testing.assert_allclose(colors.axes @ colors.axes.T, np.eye(3), atol=1e-10)


def test_signs_do_not_depend_on_the_order_of_pixels():
    cube, _ = embedding()
    vectors = cube.reshape(12, -1).T
    first, second = report.PcaColors.fit(vectors), report.PcaColors.fit(vectors[::-1])
    np.testing.assert_allclose(first.axes, second.axes, atol=1e-8)
    assert (first.axes[np.arange(3), np.abs(first.axes).argmax(axis=1)] > 0).all()


def test_blocks_have_the_colors_of_the_whole():
    cube, _ = embedding()
    colors = report.PcaColors.fit(cube.reshape(12, -1).T)
    blocks = np.concatenate([colors(cube[:, :7]), colors(cube[:, 7:])])
    np.testing.assert_array_equal(blocks, colors(cube))
    np.testing.assert_array_equal(report.pca_rgb(cube), colors(cube))


def test_pixels_without_an_embedding_are_gray_and_do_not_count():
    cube, _ = embedding()
    clean = report.pca_rgb(cube[:, 1:])
    cube[3, 0] = np.nan
    picture = report.pca_rgb(cube)
    np.testing.assert_allclose(picture[0], np.broadcast_to(to_rgb(MASKED), (30, 3)))
    np.testing.assert_allclose(picture[1:], clean, atol=1e-10)


def test_constant_embedding_has_one_color():
    picture = report.pca_rgb(np.ones((4, 5, 6)))
    assert np.isfinite(picture).all()
    assert np.ptp(picture) == 0


def test_large_samples_are_thinned_evenly():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50_000, 4)) * [5, 3, 2, 0.1]
    colors = report.PcaColors.fit(vectors)
    np.testing.assert_allclose(np.abs(colors.axes), np.eye(4)[:3], atol=0.05)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\[n, E\] with E of at least 3, got shape \[5, 2\]"):
        report.PcaColors.fit(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="at least 2 finite rows, got 1"):
        report.PcaColors.fit(np.array([[1.0, 2, 3], [np.nan, 0, 0]]))
    with pytest.raises(ValueError, match=r"expected \[E, h, w\]"):
        report.pca_rgb(np.zeros((3, 4)))
    colors = report.PcaColors.fit(np.random.default_rng(0).random((10, 4)))
    with pytest.raises(ValueError, match=r"expected \[4, h, w\], got shape \[5, 2, 2\]"):
        colors(np.zeros((5, 2, 2)))


def test_picture_png_has_a_pixel_for_a_pixel():
    picture = np.random.default_rng(0).random((7, 5, 3))
    picture[0, 0] = [2.0, -1.0, 0.5]
    png = report.picture_png(picture)
    back = imread(io.BytesIO(png))[..., :3]
    assert back.shape == (7, 5, 3)
    np.testing.assert_allclose(back, np.clip(picture, 0, 1), atol=0.5 / 255 + 1e-6)
    assert png == report.picture_png(picture)
    with pytest.raises(ValueError, match=r"picture: expected \[H, W, 3\], got shape \[7, 5\]"):
        report.picture_png(picture[..., 0])
