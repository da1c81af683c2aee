"""SpectralImage: physical values, windows, samples, and what it refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from specfast.data import SpectralImage
from specfast.data import open as open_image
from specfast.errors import DataError

KNOWN = {
    "wavelength": [450, 550, 650, 850, 1600],
    "fwhm": [9] * 5,
    "gsd": 4,
    "sensor": "AVIRIS-NG",
    "level": "radiance",
}


@pytest.fixture
def image(cube):
    return SpectralImage.from_array(cube.astype("f4"), **(KNOWN | {"level": "radiance"}))


def test_from_array(image, cube):
    assert (image.shape, image.path, image.name, image.reader) == ((5, 6, 7), None, "array", "array")
    assert (image.sensor, image.level, image.gsd, image.scale, image.offset) == ("aviris_ng", "L1", 4.0, 1.0, 0.0)
    assert (image.nodata, image.crs, image.transform, image.assumptions) == (None, None, None, [])
    assert image.good_bands.all()
    assert image.wavelength.dtype == image.fwhm.dtype == np.float64
    np.testing.assert_array_equal(image.read(), cube)
    assert repr(image) == "SpectralImage('array', 5 bands, 6 x 7, aviris_ng, L1, 450-1600 nm, 4 m)"


def test_reading_does_not_change_or_share_the_array(cube):
    array = cube.astype("f4")
    image = SpectralImage.from_array(array, nodata=4)
    values = image.read()
    values += 1
    np.testing.assert_array_equal(array, cube)


def test_arrays_of_other_kinds(cube):
    np.testing.assert_array_equal(SpectralImage.from_array(torch.from_numpy(cube)).read(), cube)
    np.testing.assert_array_equal(SpectralImage.from_array(cube.astype(">u2")).read(), cube)
    np.testing.assert_array_equal(SpectralImage.from_array(cube[:, ::-1, ::2]).read(), cube[:, ::-1, ::2])
    np.testing.assert_array_equal(SpectralImage.from_array(cube > 50).read(), cube > 50)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("i2", -9999),
        ("u2", 65535),
        ("u1", 0),
        ("i8", -(2**62)),
        ("f4", -0.01),
        ("f4", -9999),
        ("f4", 0),
        ("f4", -3.4028235e38),
        ("f4", np.nan),
        ("f8", -1.0e34),
        ("f4", np.inf),
    ],
)
def test_nodata(dtype, nodata):
    array = np.full((2, 3, 4), 5, dtype=dtype)
    array[1, 2, 3] = nodata
    values = SpectralImage.from_array(array, nodata=nodata, scale=10).read()
    assert np.argwhere(np.isnan(values)).tolist() == [[1, 2, 3]]
    np.testing.assert_array_equal(values[~np.isnan(values)], np.float32(0.5))


def test_a_single_precision_nodata_in_doubles():
    array = np.full((1, 1, 2), 0.5)
    array[0, 0, 0] = np.float32(-0.01)
    assert np.isnan(SpectralImage.from_array(array, nodata=-0.01).read()).tolist() == [[[True, False]]]


@pytest.mark.parametrize(("dtype", "nodata"), [("u1", -9999), ("i2", 0.5), ("u2", 1e9)])
def test_a_nodata_that_the_type_cannot_hold_hides_nothing(dtype, nodata):
    image = SpectralImage.from_array(np.arange(24).reshape(2, 3, 4).astype(dtype), nodata=nodata)
    assert np.isfinite(image.read()).all()


def test_infinite_and_overflowing_values_are_nan():
    values = SpectralImage.from_array(np.array([[[np.inf, -np.inf, np.nan, 1e300, 1.0]]])).read()
    assert np.isnan(values).tolist() == [[[True, True, True, True, False]]]


def test_scaling_keeps_the_digits_of_wide_integers():
    array = np.array([2**31 - 1, 2**31 - 101], dtype="u4").reshape(1, 1, 2)
    values = SpectralImage.from_array(array, scale=1.0, offset=-(2.0**31) + 101).read()
    assert values.tolist() == [[[100, 0]]]


@pytest.mark.parametrize("window", [(0, 0, 6, 7), (0, 0, 1, 1), (5, 6, 1, 1), (2, 3, 3, 2)])
def test_windows(image, cube, window):
    row, column, height, width = window
    values = image.read(np.array(window))
    np.testing.assert_array_equal(values, cube[:, row : row + height, column : column + width])


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 7, 7), (0, 6, 1, 2), (0, 0, 0, 1), (6, 0, 1, 1)])
def test_windows_outside(image, window):
    with pytest.raises(DataError, match=r"array: window .* does not lie inside the image of 6 x 7 pixels"):
        image.read(window)


@pytest.mark.parametrize("window", [(0, 0, 1), "all", (0, 0, 1.5, 1), 3])
def test_windows_that_are_none(image, window):
    with pytest.raises(DataError, match="window: expected four whole numbers"):
        image.read(window)


@pytest.mark.parametrize("bands", [[4, 1], [2, 2], (0,), np.array([3, 0], "u1"), slice(None, None, -2), [], 3])
def test_bands_come_in_the_order_asked_for(image, cube, bands):
    expected = cube[np.atleast_1d(np.arange(5)[bands] if len(np.shape(bands)) == 0 else np.array(bands, dtype=int))]
    np.testing.assert_array_equal(image.read(bands=bands), expected)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([0, 5], "from 0 to 4, got 5"),
        ([-1], "from 0 to 4, got -1"),
        ([0.5], "expected whole numbers, got float64"),
        ([[0, 1]], r"got shape \(1, 2\)"),
        ([True, False], "as a mask must have 5 values"),
    ],
)
def test_bands_that_are_none(image, bands, message):
    with pytest.raises(DataError, match=message):
        image.read(bands=bands)


def test_sample(cube):
    array = cube.astype("f4")
    array[1, 2, 3] = np.nan
    array[3, 4, 5] = np.inf
    image = SpectralImage.from_array(array, **KNOWN, good_bands=[1, 1, 1, 0, 1])
    sample = image.sample()
    assert sample.image.dtype == sample.wavelength.dtype == sample.fwhm.dtype == torch.float32
    assert sample.wavelength.tolist() == [450, 550, 650, 1600]
    assert (sample.gsd, sample.sensor, sample.level) == (4, "avng", "L1")
    # Band 3 is bad, so what is infinite in it does not count.
    assert np.argwhere(~sample.valid.numpy()).tolist() == [[2, 3]]
    assert not sample.image[:, 2, 3].any()
    assert np.argwhere(~image.sample(bands=[3]).valid.numpy()).tolist() == [[4, 5]]
    assert image.sample((0, 1, 2, 3), [4, 0]).wavelength.tolist() == [1600, 450]


@pytest.mark.parametrize("key", ["wavelength", "fwhm", "gsd", "sensor", "level"])
def test_a_sample_needs_all_metadata(cube, key):
    image = SpectralImage.from_array(cube, **{k: v for k, v in KNOWN.items() if k != key}, name="my scene")
    with pytest.raises(DataError, match=rf"my scene: {key} unknown; pass {key}=.* to SpectralImage.from_array"):
        image.sample()


def test_a_sample_needs_usable_bands(cube):
    wrong = KNOWN | {"wavelength": [450, 550, 0.65, 850, 1600]}
    with pytest.raises(DataError, match=r"wavelength: band 2 is 0.65; expected 350 to 2550 nm"):
        SpectralImage.from_array(cube, **wrong).sample()
    with pytest.raises(DataError, match="none of its 5 bands is good"):
        SpectralImage.from_array(cube, **KNOWN, good_bands=[False] * 5).sample()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": np.zeros((2, 3))}, r"array must be \[bands, height, width\], got shape \(2, 3\)"),
        ({"array": np.zeros((0, 3, 4))}, "at least one band"),
        ({"array": np.zeros((5, 3, 4), complex)}, "real numbers"),
        ({"wavelength": [450, 550]}, "wavelength has 2 values, but the image has 5 bands"),
        ({"fwhm": ["a", "b", "c", "d", "e"]}, "fwhm is not a list of numbers"),
        ({"gsd": 0}, "gsd must be a positive number"),
        ({"gsd": np.nan}, "gsd must be a positive number"),
        ({"scale": 0}, "scale must not be 0"),
        ({"offset": np.inf}, "offset must be a finite number"),
        ({"level": "L7"}, "unknown processing level"),
    ],
)
def test_bad_arguments(cube, change, message):
    with pytest.raises(ValueError, match=message):
        SpectralImage.from_array(**({"array": cube} | KNOWN | change))


def test_an_image_of_a_file_is_small_when_pickled(tmp_path, cube):
    np.save(tmp_path / "a.npy", np.tile(cube, (1, 100, 100)).astype("f4"))
    image = open_image(tmp_path / "a.npy", wavelength=KNOWN["wavelength"])
    data = pickle.dumps(image)
    assert len(data) < 5000
    np.testing.assert_array_equal(pickle.loads(data).read((0, 0, 6, 7)), cube)


def test_the_package_offers_functions_whatever_was_imported_before():
    import specfast.data.resample
    import specfast.data.sensors

    assert callable(specfast.data.sensors)
    assert callable(specfast.data.resample)
    assert callable(specfast.data.open)
    for name in specfast.data.__all__:
        assert getattr(specfast.data, name) is not None
    assert set(specfast.data.__all__) == set(dir(specfast.data))
    with pytest.raises(AttributeError, match="no attribute 'closed'"):
        _ = specfast.data.closed


def test_a_band_without_data_is_named():
    image = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    image[1] = np.nan
    metadata = {"wavelength": [450, 550, 650], "fwhm": [9, 9, 9], "gsd": 4.0, "sensor": "avc", "level": "L2"}
    scene = SpectralImage.from_array(image, **metadata)
    with pytest.raises(DataError, match="band 1 holds no data, so no pixel would be valid"):
        scene.sample()
    assert bool(scene.sample(bands=[0, 2]).valid.all())
    assert not bool(scene.sample(window=(0, 0, 2, 2)).valid.any())
