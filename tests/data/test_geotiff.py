"""GeoTIFF with band tags."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from specfast.data import open as open_image
from specfast.errors import DataError

WAVELENGTH = [450, 550, 650, 850, 1600]


@pytest.fixture
def write(tmp_path):
    def write(cube, *, tags=None, band_tags=(), gdal_tags=(), name="scene.tif", **profile):
        bands, height, width = cube.shape
        options = {"crs": "EPSG:32633", "transform": rasterio.Affine(30, 0, 4e5, 0, -30, 5e6)} | profile
        scales, offsets = options.pop("scales", None), options.pop("offsets", None)
        options |= {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": cube.dtype}
        with rasterio.open(tmp_path / name, "w", **options) as raster:
            raster.write(cube)
            raster.update_tags(**(tags or {}))
            for band, values in enumerate(band_tags, 1):
                raster.update_tags(band, **values)
            for band, values in enumerate(gdal_tags, 1):
                raster.update_tags(band, ns="IMAGERY", **values)
            if scales is not None:
                raster.scales = scales
            if offsets is not None:
                raster.offsets = offsets
        return tmp_path / name

    return write


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_types_and_layouts(write, cube, dtype):
    for interleave, tiled in (("band", False), ("pixel", True)):
        more = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
        path = write(cube.astype(dtype), interleave=interleave, compress="deflate", **more)
        image = open_image(path)
        assert (image.shape, image.reader, image.dtype) == ((5, 6, 7), "geotiff", np.dtype(dtype))
        np.testing.assert_array_equal(image.read(), cube)
        np.testing.assert_array_equal(image.read((1, 2, 3, 4), [4, 0, 0]), cube[[4, 0, 0], 1:4, 2:6])


@pytest.mark.parametrize("unit", ["Nanometers", "Micrometers", None])
def test_band_tags(write, cube, unit):
    factor = 0.001 if unit == "Micrometers" else 1
    tags = [{"wavelength": f"{w * factor:g}", "fwhm": f"{9 * factor:g}", "bbl": str(int(w != 650))} for w in WAVELENGTH]
    if unit:
        tags = [tag | {"wavelength_units": unit} for tag in tags]
    image = open_image(
        write(cube.astype("int16"), band_tags=tags, nodata=5, scales=[1e-4] * 5, tags={"sensor": "EnMAP"})
    )
    np.testing.assert_allclose(image.wavelength, WAVELENGTH)
    np.testing.assert_allclose(image.fwhm, 9)
    assert image.good_bands.tolist() == [w != 650 for w in WAVELENGTH]
    assert (image.sensor, image.level, image.scale, image.nodata, image.gsd) == ("enmap", "L2", 10000, 5, 30)
    assert (image.crs, image.transform) == ("EPSG:32633", (30, 0, 4e5, 0, -30, 5e6))
    np.testing.assert_allclose(image.read(), np.where(cube == 5, np.nan, cube / 1e4), rtol=1e-6)


def test_tags_of_gdal_and_tags_of_the_whole_file(write, cube):
    tags = [{"CENTRAL_WAVELENGTH_UM": str(w / 1000), "FWHM_UM": "0.009"} for w in WAVELENGTH]
    image = open_image(write(cube.astype("int16"), gdal_tags=tags))
    np.testing.assert_allclose(image.wavelength, WAVELENGTH)
    np.testing.assert_allclose(image.fwhm, 9)
    listed = {"wavelengths": "{450, 550, 650, 850, 1600}", "wavelength_units": "nm", "title": "L1B radiance"}
    image = open_image(write(cube.astype("int16"), tags=listed))
    np.testing.assert_allclose(image.wavelength, WAVELENGTH)
    assert image.level == "L1"
    assert "tag 'wavelengths' read as 'wavelength'" in image.assumptions


def test_a_scale_and_an_offset_a_band(write, cube):
    scales, offsets = [1, 2, 4, 0.5, 0.25], [0, 1, 0, 0, 0]
    image = open_image(write(cube.astype("int16"), scales=scales, offsets=offsets))
    expected = cube * np.array(scales)[:, None, None] + np.array(offsets)[:, None, None]
    np.testing.assert_allclose(image.read(bands=[4, 1, 2]), expected[[4, 1, 2]], rtol=1e-6)
    np.testing.assert_allclose(open_image(image.path, scale=10, offset=0).read(), cube / 10, rtol=1e-6)


def test_georeference(write, cube):
    cube = cube.astype("int16")
    degrees = open_image(write(cube, crs="EPSG:4326", transform=rasterio.Affine(0.001, 0, 10, 0, -0.001, 0)))
    assert degrees.gsd == pytest.approx(111.2, rel=5e-3)
    feet = open_image(write(cube, crs="EPSG:2225", transform=rasterio.Affine(10, 0, 0, 0, -10, 0)))
    assert feet.gsd == pytest.approx(3.048, rel=1e-4)
    turn = rasterio.Affine.rotation(30) @ rasterio.Affine.scale(12, -12)
    turned = open_image(write(cube, transform=turn))
    assert turned.gsd == pytest.approx(12)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = write(cube, crs=None, transform=None, name="nowhere.tif")
    nowhere = open_image(path)
    assert (nowhere.gsd, nowhere.crs, nowhere.transform) == (None, None, None)


def test_only_the_window_is_read(write, monkeypatch):
    path = write(np.zeros((3, 256, 256), "int16"), tiled=True, blockxsize=16, blockysize=16)
    image = open_image(path)
    read, asked = rasterio.io.DatasetReader.read, []

    class Reader(rasterio.io.DatasetReader):
        def read(self, *args, **kwargs):
            asked.append((args, kwargs["window"]))
            return read(self, *args, **kwargs)

    monkeypatch.setattr(rasterio, "open", Reader)
    image.read((10, 20, 3, 4), [2])
    assert asked == [(([3],), ((10, 13), (20, 24)))]


class TestBadInput:
    @pytest.mark.parametrize("kind", ["classic", "big", "tiled"])
    def test_cut_off(self, write, cube, kind):
        more = {"big": {"BIGTIFF": "YES"}, "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64}}.get(kind, {})
        tags = [{"wavelength": str(w)} for w in WAVELENGTH]
        path = write(np.tile(cube, (1, 40, 40)).astype("int16"), band_tags=tags, **more)
        open_image(path)
        size = path.stat().st_size
        for keep in (size - 1, size - 100, size // 2, 300, 20, 6):
            with path.open("r+b") as file:
                file.truncate(keep)
            with pytest.raises(DataError, match=r"scene.tif: .*cut off"):
                open_image(path)

    def test_files_with_holes_are_whole(self, write, cube):
        path = write(np.zeros((2, 300, 300), "int16"), tiled=True, blockxsize=16, blockysize=16, SPARSE_OK="TRUE")
        assert not open_image(path).read().any()

    def test_mixed_units(self, write, cube):
        tags = [{"wavelength": "500", "wavelength_units": unit} for unit in ("nm", "nm", "nm", "um", "nm")]
        with pytest.raises(DataError, match=r"scene.tif: its bands give wavelengths in different units: nm, um"):
            open_image(write(cube.astype("int16"), band_tags=tags))

    def test_a_wavelength_that_is_none(self, write, cube):
        tags = [{"wavelength": value} for value in ("500", "600", "red", "800", "900")]
        with pytest.raises(DataError, match=r"scene.tif: wavelength in the header holds 'red'"):
            open_image(write(cube.astype("int16"), band_tags=tags))

    def test_a_band_without_wavelength(self, write, cube):
        tags = [{"wavelength": value} for value in ("500", "600")]
        path = write(cube.astype("int16"), band_tags=tags)
        with pytest.raises(DataError, match=r"scene.tif: band 2 at nan nm, band 3 at nan nm, .* outside 350-2550 nm"):
            open_image(path)
        assert open_image(path, out_of_range="drop").good_bands.tolist() == [True, True, False, False, False]

    def test_complex(self, write, cube):
        with pytest.raises(DataError, match=r"scene.tif: expected real numbers, got complex64"):
            open_image(write(cube.astype("complex64")))

    def test_without_the_library(self, write, cube, monkeypatch):
        path = write(cube.astype("int16"))
        monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
        with pytest.raises(ImportError, match=r'pip install "specfast\[geo\]"'):
            open_image(path)
