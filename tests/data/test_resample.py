"""Resampling to another sensor's bands."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.data import SpectralImage, covered_bands, resample, sensors
from specfast.data.resample import response_weights
from specfast.errors import DataError


def integrated(spectrum, wavelength, fwhm):
    """The spectrum as bands with Gaussian responses see it, by brute force."""
    fine = np.arange(300.0, 2700, 0.05)
    values = spectrum(fine)
    result = []
    for center, width in zip(wavelength, fwhm, strict=True):
        response = np.exp(-4 * np.log(2) * ((fine - center) / width) ** 2)
        result.append((values * response).sum() / response.sum())
    return np.array(result)


def test_against_integration_of_a_smooth_spectrum():
    """Fine bands to EnMAP's: the same as if EnMAP had looked itself."""
    source = np.arange(380.0, 2500, 2.0)
    widths = np.full(len(source), 2.0)
    enmap = sensors()["enmap"]

    def spectrum(x):
        return 0.3 + 0.2 * np.sin(x / 60) + 0.1 * np.exp(-(((x - 760) / 15) ** 2))

    cube = integrated(spectrum, source, widths)[:, None, None]
    result = resample(cube, source, widths, enmap.wavelength, enmap.fwhm)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[:, 0, 0], integrated(spectrum, enmap.wavelength, enmap.fwhm), atol=1e-3)
    # Interpolation would not do.
    nearest = cube[np.abs(source[:, None] - enmap.wavelength).argmin(axis=0), 0, 0]
    assert np.abs(nearest - integrated(spectrum, enmap.wavelength, enmap.fwhm)).max() > 5e-3


@pytest.mark.parametrize("key", ["aviris_classic", "indian_pines", "prisma", "enmap"])
def test_to_its_own_bands_nothing_changes(key):
    sensor = sensors()[key]
    cube = np.random.default_rng(0).random((len(sensor), 2, 3))
    result = resample(cube, sensor.wavelength, sensor.fwhm, sensor.wavelength, sensor.fwhm)
    np.testing.assert_allclose(result, cube, atol=1e-6)


def test_constants_and_lines_are_kept_whatever_the_order():
    source, target = sensors()["aviris_classic"], sensors()["enmap"]
    order = np.random.default_rng(0).permutation(len(source))
    weights = response_weights(source.wavelength[order], source.fwhm[order], target.wavelength, target.fwhm)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights @ source.wavelength[order], target.wavelength)
    assert weights.min() > -1e-12
    straight = response_weights(source.wavelength, source.fwhm, target.wavelength, target.fwhm)
    np.testing.assert_allclose(weights, straight[:, order], atol=1e-9)


def test_bands_of_one_wavelength_share():
    weights = response_weights([500, 510, 510, 520], [9] * 4, [510], [9])
    np.testing.assert_allclose(weights, [[0, 0.5, 0.5, 0]], atol=1e-9)
    np.testing.assert_allclose(response_weights([500, 500], [9, 9], [501], [9]), [[0.5, 0.5]])


def test_gaps_and_ends_are_not_covered():
    source = np.array([*range(400, 601, 10), *range(800, 1001, 10)], dtype=float)
    widths = np.full(len(source), 10.0)
    target = np.array([390, 400, 595, 607, 612, 700, 793, 1008, 1020], dtype=float)
    covered = covered_bands(source, widths, target, np.full(len(target), 8.0))
    assert covered.tolist() == [False, True, True, True, False, False, True, False, False]
    cube = np.ones((len(source), 1, 1))
    with pytest.raises(DataError, match=r"target_wavelength: 5 of 9 bands are not covered .* band 0 at 390 nm"):
        resample(cube, source, widths, target, np.full(len(target), 8.0))
    assert resample(cube, source, widths, target[covered], np.full(4, 8.0)).ravel().tolist() == pytest.approx([1] * 4)


def test_missing_values_stay_where_they_matter():
    source = np.arange(400.0, 900, 10)
    cube = np.ones((50, 1, 2))
    cube[20, 0, 1] = np.nan
    result = resample(cube, source, None, [450.0, 600.0, 604.0, 700.0], [12.0] * 4)
    assert np.isnan(result[:, 0, 1]).tolist() == [False, True, True, False]
    assert np.isfinite(result[:, 0, 0]).all()


def test_image_brings_its_tables_without_bad_bands():
    source = np.arange(400.0, 900, 10)
    good = np.ones(50, dtype=bool)
    good[10] = False
    cube = np.random.default_rng(0).random((50, 3, 4))
    cube[10] = np.nan
    image = SpectralImage.from_array(cube, wavelength=source, fwhm=np.full(50, 9.0), good_bands=good)
    result = resample(image, None, None, [455.0, 700.0], [14.0, 14.0])
    expected = resample(cube[good], source[good], np.full(49, 9.0), [455.0, 700.0], [14.0, 14.0])
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    with pytest.raises(DataError, match="brings its own"):
        resample(image, source, None, [455.0], [14.0])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (([1.0, 2], None, [1.0], [1.0]), "source_wavelength: has 2 bands, the cube has shape"),
        (([400.0, 410, np.nan], None, [400.0], [9.0]), "source_wavelength: expected a list of finite"),
        (([400.0, 410, 420], [9.0, 9], [400.0], [9.0]), "source_fwhm: expected 3 positive"),
        (([400.0, 410, 420], None, [400.0], [0.0]), "target_fwhm: expected 1 positive"),
        (([400.0, 410, 420], None, [400.0], None), "target_fwhm: one band has no spacing"),
        (([400.0, 410, 420], None, [], []), "target_wavelength: expected a list"),
    ],
)
def test_bad_tables(tables, message):
    with pytest.raises(DataError, match=message):
        resample(np.ones((3, 1, 1)), *tables)
