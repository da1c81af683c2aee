"""NetCDF in the layouts of EMIT and AVIRIS-3, and HDF5 of any other layout."""

from __future__ import annotations

import h5netcdf
import h5py
import numpy as np
import pytest

from specfast.data import open as open_image
from specfast.data import sensors
from specfast.errors import DataError

EMIT = "EMIT (Earth Surface Mineral Dust Source Investigation)"
UTM = 'PROJCS["WGS 84 / UTM zone 11N",GEOGCS["WGS 84"]]'


def write_emit(path, values, *, variable="reflectance", good=True, units=None):
    """EMIT L1B or L2A: cube [downtrack, crosstrack, bands] at the root, tables in sensor_band_parameters."""
    table = sensors()["emit"]
    with h5netcdf.File(path, "w") as file:
        file.dimensions = dict(zip(("downtrack", "crosstrack", "bands"), values.shape, strict=True))
        file.attrs["sensor"], file.attrs["title"] = EMIT, "EMIT L2A Estimated Surface Reflectance 60 m V001"
        file.attrs["geotransform"] = np.array([10.0, 0.00054, 0, 50.0, 0, -0.00054])
        cube = file.create_variable(variable, ("downtrack", "crosstrack", "bands"), data=values, fillvalue=-9999.0)
        if units:
            cube.attrs["units"] = units
        group = file.create_group("sensor_band_parameters")
        for name, column, unit in (("wavelengths", table.wavelength, "nm"), ("fwhm", table.fwhm, "nm")):
            variable = group.create_variable(name, ("bands",), data=column.astype("f4"))
            variable.attrs["units"] = unit
        if good:
            flags = np.ones(285, "f4")
            flags[127:142] = flags[187:213] = 0
            group.create_variable("good_wavelengths", ("bands",), data=flags)
        group = file.create_group("location")
        group.create_variable("lon", ("downtrack", "crosstrack"), data=np.zeros(values.shape[:2]))
    return path


def write_aviris_3(path, values, kind, units="uW nm-1 cm-2 sr-1"):
    """AVIRIS-3 L1B or L2A: group with the cube [wavelength, northing, easting] and its tables."""
    table = sensors()["aviris_3"]
    _, height, width = values.shape
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"northing": height, "easting": width}
        file.attrs["title"] = "AVIRIS-3 L1B Calibrated Radiance" if kind == "radiance" else "AVIRIS-3 L2A"
        mapping = file.create_variable("transverse_mercator", (), dtype="i4")
        mapping.attrs["spatial_ref"], mapping.attrs["GeoTransform"] = UTM, "400000 2.9 0 3800000 0 -2.9"
        file.create_variable("northing", ("northing",), data=np.arange(float(height)))
        file.create_variable("easting", ("easting",), data=np.arange(float(width)))
        group = file.create_group(kind)
        group.dimensions = {"wavelength": 284}
        wavelength = group.create_variable("wavelength", ("wavelength",), data=table.wavelength)
        wavelength.attrs["units"] = "nanometers"
        group.create_variable("fwhm", ("wavelength",), data=table.fwhm)
        cube = group.create_variable(
            kind, ("wavelength", "northing", "easting"), data=values, fillvalue=-9999.0, chunks=(10, 4, 4)
        )
        cube.attrs["grid_mapping"] = "transverse_mercator"
        if kind == "radiance":
            cube.attrs["units"] = units
    return path


@pytest.fixture
def emit_values():
    values = np.random.default_rng(0).random((6, 7, 285), dtype=np.float32)
    values[0, 1] = -9999
    values[:, :, 127:142] = values[:, :, 187:213] = -0.01
    return values


@pytest.fixture
def aviris_values():
    return np.random.default_rng(0).random((284, 9, 8), dtype=np.float32)


def test_emit_reflectance(tmp_path, emit_values):
    image = open_image(write_emit(tmp_path / "a.nc", emit_values))
    assert (image.shape, image.reader, image.sensor, image.level) == ((285, 6, 7), "netcdf", "emit", "L2")
    np.testing.assert_allclose(image.wavelength, sensors()["emit"].wavelength, atol=1e-4)
    np.testing.assert_allclose(image.fwhm, sensors()["emit"].fwhm, atol=1e-6)
    assert (image.nodata, image.gsd, image.transform) == (-9999, 60, None)
    assert image.good_bands.sum() == 285 - 15 - 26
    expected = np.where(emit_values == -9999, np.nan, emit_values).transpose(2, 0, 1)
    np.testing.assert_array_equal(image.read(), expected)
    np.testing.assert_array_equal(image.read((1, 2, 3, 4), [284, 0, 9]), expected[[284, 0, 9], 1:4, 2:6])
    sample = image.sample()
    assert sample.image.shape == (244, 6, 7)
    assert np.argwhere(~sample.valid.numpy()).tolist() == [[0, 1]]


def test_emit_radiance(tmp_path, emit_values):
    path = write_emit(tmp_path / "a.nc", emit_values, variable="radiance", good=False, units="uW/cm^2/SR/nm")
    image = open_image(path)
    assert (image.level, image.scale) == ("L1", 1)
    # No good_wavelengths here, but the same number throughout: seen in the pixels.
    assert image.good_bands.sum() == 244


@pytest.mark.parametrize("kind", ["radiance", "reflectance"])
def test_aviris_3(tmp_path, aviris_values, kind):
    image = open_image(write_aviris_3(tmp_path / "AV320240101t000000.nc", aviris_values, kind))
    assert (image.shape, image.sensor) == ((284, 9, 8), "aviris_3")
    assert image.level == {"radiance": "L1", "reflectance": "L2"}[kind]
    assert (image.gsd, image.crs) == (2.9, UTM)
    assert image.transform == (2.9, 0, 400000, 0, -2.9, 3800000)
    np.testing.assert_allclose(image.wavelength, sensors()["aviris_3"].wavelength)
    np.testing.assert_array_equal(image.read((2, 1, 5, 6), [7, 3]), aviris_values[[7, 3], 2:7, 1:7])
    assert image.assumptions == []
    assert image.sample().sensor == "av3"


@pytest.mark.parametrize(("units", "factor"), [("W m-2 sr-1 um-1", 0.1), ("mW/(m^2 sr nm)", 0.1), ("counts", 1)])
def test_units_of_radiance(tmp_path, aviris_values, units, factor):
    image = open_image(write_aviris_3(tmp_path / "a.nc", aviris_values, "radiance", units), sensor="aviris_3")
    assert image.level == "L1"
    np.testing.assert_allclose(image.read(), aviris_values * factor, rtol=1e-6)
    assert any("converted to uW" in note for note in image.assumptions) == (factor != 1)


def test_packed_integers(tmp_path, cube):
    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"y": 6, "x": 7, "wavelength": 5}
        file.create_variable("wavelength", ("wavelength",), data=np.array([0.45, 0.55, 0.65, 0.85, 1.6]))
        data = file.create_variable("toa", ("y", "wavelength", "x"), data=cube.transpose(1, 0, 2).astype("i2"))
        data.attrs["scale_factor"], data.attrs["add_offset"] = 0.01, 0.5
        data.attrs["_FillValue"] = np.int16(4)
    image = open_image(tmp_path / "a.nc")
    assert (image.scale, image.offset, image.nodata) == (100, 0.5, 4)
    np.testing.assert_allclose(image.wavelength, [450, 550, 650, 850, 1600])
    np.testing.assert_allclose(image.read(), np.where(cube == 4, np.nan, cube / 100 + 0.5), rtol=1e-6)


def test_only_the_window_is_read(tmp_path, aviris_values, monkeypatch):
    path = write_aviris_3(tmp_path / "a.nc", aviris_values, "reflectance")
    asked, get = [], h5py.Dataset.__getitem__

    def count(self, key, **kwargs):
        result = get(self, key, **kwargs)
        asked.append(np.size(result))
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", count)
    image = open_image(path)
    assert sum(asked) == 2 * 284
    image.read((1, 2, 3, 4), [100, 5])
    assert sum(asked) == 2 * 284 + 2 * 3 * 4


class TestBadInput:
    def test_several_cubes(self, tmp_path):
        path = tmp_path / "prs.he5"
        with h5py.File(path, "w") as file:
            file["HDFEOS/VNIR_Cube"], file["HDFEOS/SWIR_Cube"] = np.zeros((9, 66, 8)), np.zeros((9, 173, 8))
            file["HDFEOS/PAN"] = np.zeros((50, 50))
        with pytest.raises(DataError, match=r"several arrays .*: HDFEOS/SWIR_Cube 9x173x8, HDFEOS/VNIR_Cube 9x66x8"):
            open_image(path)
        image = open_image(path, variable="VNIR_Cube", wavelength=np.linspace(400, 1000, 66))
        assert image.shape == (66, 9, 8)

    def test_a_much_larger_one_is_taken_and_said(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["cube"], file["angles"] = np.ones((9, 8, 60)), np.zeros((9, 8, 5))
        image = open_image(tmp_path / "a.h5")
        assert image.shape == (60, 9, 8)
        assert "array cube taken, the largest; there are also angles 9x8x5" in image.assumptions

    def test_equals(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a"], file["b"] = np.zeros((9, 8, 7)), np.zeros((9, 8, 7))
        with pytest.raises(DataError, match=r"a.h5: several arrays could be the scene: a 9x8x7, b 9x8x7; pass var"):
            open_image(tmp_path / "a.h5")

    def test_uncertainty_beside_reflectance(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["reflectance"], file["reflectance_uncertainty"] = np.ones((9, 8, 7)), np.zeros((9, 8, 7))
        assert open_image(tmp_path / "a.h5").read().all()

    def test_no_cube(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["map"] = np.zeros((4, 4))
        with pytest.raises(DataError, match=r"a.h5: holds no numeric array with 3 axes; it holds map 4x4"):
            open_image(tmp_path / "a.h5")

    def test_cut_off(self, tmp_path, emit_values):
        path = write_emit(tmp_path / "a.nc", emit_values)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(DataError, match=r"a.nc: cannot be read as HDF5 .* cut off"):
            open_image(path)

    def test_netcdf_3(self, tmp_path):
        (tmp_path / "a.nc").write_bytes(b"CDF\x01" + bytes(100))
        with pytest.raises(DataError, match=r"a.nc: not one of the formats .*NetCDF-3 must be converted"):
            open_image(tmp_path / "a.nc")

    def test_without_the_library(self, tmp_path, emit_values, monkeypatch):
        path = write_emit(tmp_path / "a.nc", emit_values)
        monkeypatch.setitem(__import__("sys").modules, "h5py", None)
        with pytest.raises(ImportError, match=r'pip install "specfast\[hdf\]"'):
            open_image(path)
