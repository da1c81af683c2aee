"""ENVI headers and data as they are in the wild."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from specfast.data import open as open_image
from specfast.errors import DataError

from .conftest import ENVI_CODES


@pytest.mark.parametrize("order", [0, 1], ids=["little", "big"])
@pytest.mark.parametrize("dtype", ENVI_CODES)
def test_types_and_byte_orders(write_envi, cube, dtype, order):
    image = open_image(write_envi(cube.astype(dtype), order=order))
    assert (image.shape, image.reader) == ((5, 6, 7), "envi")
    assert image.dtype == np.dtype(dtype).newbyteorder("<>"[order])
    result = image.read()
    assert result.dtype == np.float32
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, cube)


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip", "BIL"])
@pytest.mark.parametrize("offset", [0, 13])
def test_interleaves_offsets_windows_and_bands(write_envi, cube, interleave, offset):
    key = interleave.lower()
    header = write_envi(cube.astype("i2"), interleave=key, offset=offset)
    header.write_text(header.read_text().replace(f"= {key}", f"= {interleave}"))
    image = open_image(header)
    np.testing.assert_array_equal(image.read(), cube)
    assert image.read().flags.c_contiguous
    for bands in ([4, 0, 0, 2], np.array([1]), slice(1, 4), np.array([True, False, False, True, True])):
        np.testing.assert_array_equal(image.read((2, 1, 3, 5), bands), cube[bands][:, 2:5, 1:6])


def test_the_data_file_may_be_given_and_named_in_any_of_the_usual_ways(write_envi, cube, tmp_path):
    for name, header in (
        ("a.img", "a.hdr"),
        ("b.img", "b.img.hdr"),
        ("c", "c.hdr"),
        ("d.DAT", "d.HDR"),
        ("e_v1.2_rfl", "e_v1.2_rfl.hdr"),
    ):
        write_envi(cube.astype("f4"), name=name, header=header)
        for path in (tmp_path / name, tmp_path / header):
            image = open_image(path)
            assert image.path == path
            np.testing.assert_array_equal(image.read(bands=[3])[0], cube[3])


def test_metadata(write_envi, cube, bands):
    more = f"""{bands}
bbl = {{1, 1, 0, 1, 1}}
data ignore value = 7
reflectance scale factor = 100
sensor type = AVIRIS
; a comment = {{ that is never closed
description = {{ two
 lines = one }}"""
    image = open_image(write_envi(cube.astype("i2"), more=more), gsd=4)
    assert image.wavelength.tolist() == [450, 550, 650, 850, 1600]
    assert image.fwhm.tolist() == [8, 8, 9, 9, 12]
    assert image.good_bands.tolist() == [True, True, False, True, True]
    assert (image.sensor, image.level, image.nodata, image.scale) == ("aviris_classic", "L2", 7, 100)
    expected = np.where(cube == 7, np.nan, cube / 100).astype("f4")
    np.testing.assert_allclose(image.read(), expected, rtol=1e-6)
    sample = image.sample()
    good = expected[[0, 1, 3, 4]]
    np.testing.assert_array_equal(sample.valid.numpy(), ~np.isnan(good).any(axis=0))
    assert not sample.valid.all()
    assert (sample.sensor, sample.level, sample.gsd) == ("avc", "L2", 4)
    assert not sample.image[:, ~sample.valid].any()


@pytest.mark.parametrize(
    ("keys", "mended"),
    [
        ("wavelength_unts = Micrometers\nwavelengths = {0.45,0.55,0.65,0.85,1.6}", ["wavelength units", "wavelength"]),
        ("Wavelength Unit = um\nWAVELENGTH = {0.45 0.55 0.65 0.85 1.6}", ["wavelength units"]),
        ("wavelength_units = Micrometers\nwavelength={0.45,0.55,0.65,0.85,1.6}", []),
    ],
)
def test_misspelt_keys_are_read_and_said(write_envi, cube, keys, mended):
    image = open_image(write_envi(cube.astype("i2"), more=keys))
    np.testing.assert_allclose(image.wavelength, [450, 550, 650, 850, 1600])
    notes = [note for note in image.assumptions if note.startswith("header key")]
    assert [note.split("read as ")[1].strip("'") for note in notes] == mended


def test_gains_are_radiance_in_the_unit_of_the_format(write_envi, cube, bands):
    more = f"{bands}\ndata gain values = {{1, 2, 3, 4, 5}}\ndata offset values = {{0, 10, 0, 0, 0}}"
    header = write_envi(cube.astype("i2"), more=more)
    expected = cube * np.arange(1, 6)[:, None, None] + np.array([0, 10, 0, 0, 0])[:, None, None]
    np.testing.assert_allclose(open_image(header).read(), expected, rtol=1e-6)
    radiance = open_image(header, level="L1")
    np.testing.assert_allclose(radiance.read(bands=[4, 1]), expected[[4, 1]] / 10, rtol=1e-6)
    assert any("converted to uW" in note for note in radiance.assumptions)
    assert not any("converted" in note for note in open_image(header, level="L2").assumptions)


def test_equal_reflectance_gains_are_one_scale(write_envi, cube):
    more = "data reflectance gain values = {0.01, 0.01, 0.01, 0.01, 0.01}"
    image = open_image(write_envi(cube.astype("i2"), more=more))
    assert (image.scale, image.level) == (pytest.approx(100), "L2")


@pytest.mark.parametrize("turn", [0, 34, -34])
def test_map_info_agrees_with_gdal(write_envi, cube, turn):
    """Another program's reading of the same header is the oracle."""
    rotation = f", rotation={turn}" if turn else ""
    more = (
        f"map info = {{UTM, 1, 1, 579717.18, 3714550.7, 16.9, 16.9, 11, South, WGS-84, units=Meters{rotation}}}\n"
        "sensor type = ROSIS"
    )
    image = open_image(write_envi(cube.astype("i2"), more=more))
    assert (image.gsd, image.crs) == (16.9, "EPSG:32711")
    with rasterio.open(image.path.with_suffix(".img")) as raster:
        assert image.transform == pytest.approx(tuple(raster.transform)[:6], abs=1e-6)


def test_map_info_with_another_reference_pixel_degrees_and_oblong_pixels(write_envi, cube):
    more = "map info = {Geographic Lat/Lon, 3, 2, 10.0, 60.0, 0.001, 0.0005, WGS-84, units=Degrees}"
    image = open_image(write_envi(cube.astype("i2"), more=more))
    assert image.transform == pytest.approx((0.001, 0, 9.998, 0, -0.0005, 60.0005))
    assert image.crs == "EPSG:4326"
    # A degree of longitude at 60 degrees is half of one of latitude: both sides are 55.6 m.
    assert image.gsd == pytest.approx(55.6, rel=2e-3)
    assert any("degrees" in note for note in image.assumptions)
    image = open_image(write_envi(cube.astype("i2"), more="map info = {UTM, 1, 1, what, 2, 3, 3, 11, North, WGS-84}"))
    assert (image.gsd, image.transform) == (None, None)
    assert any("cannot be read" in note for note in image.assumptions)


class TestBadInput:
    @pytest.mark.parametrize("code", [6, 9])
    def test_complex(self, write_envi, cube, code):
        header = write_envi(cube.astype("f8"))
        header.write_text(header.read_text().replace("data type = 5", f"data type = {code}"))
        with pytest.raises(DataError, match=rf"scene.hdr: holds complex numbers \(data type = {code}\)"):
            open_image(header)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("data type = 2", "data type = 77", "data type = 77; expected one of 1, 2, 3"),
            ("bands = 5", "bands = 0", "bands = 0; expected a whole number, at least 1"),
            ("samples = 7", "samples = -7", "samples = -7; expected a whole number"),
            ("lines = 6", "lines = six", "lines = six; expected a whole number"),
            ("lines = 6\n", "", "the header lacks 'lines'"),
            ("interleave = bsq", "interleave = tiled", "interleave = tiled; expected bsq, bil or bip"),
            ("byte order = 0", "byte order = 2", "byte order = 2; expected 0"),
            ("ENVI Standard", "ENVI Spectral Library", "is an ENVI spectral library, not an image"),
            ("byte order = 0", "file compression = 1", "is compressed"),
            ("byte order = 0", "wavelength = {450, nine, 3, 4, 5}", "wavelength in the header holds 'nine'"),
            ("byte order = 0", "wavelength = {450, 500}", "wavelength has 2 values, but the image has 5 bands"),
            ("byte order = 0", "bbl = {1, 1}", "bad band list has 2 values, but the image has 5 bands"),
            ("byte order = 0", "wavelength = {450,\n 500", "the list of 'wavelength' is never closed"),
        ],
    )
    def test_header(self, write_envi, cube, old, new, message):
        header = write_envi(cube.astype("i2"))
        text = header.read_text()
        assert old in text
        header.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=f"scene.hdr: .*{message}"):
            open_image(header)

    @pytest.mark.parametrize(("change", "cause"), [(-1, "was cut off"), (2, "is another one"), (-420, "empty|cut off")])
    def test_size(self, write_envi, cube, change, cause):
        header = write_envi(cube.astype("i2"))
        path = header.with_suffix(".img")
        with path.open("r+b") as file:
            file.truncate(420 + change)
        with pytest.raises(DataError, match=rf"scene.img: holds {420 + change} bytes, .* asks for 420 .*({cause})"):
            open_image(header)

    def test_truncated_after_opening(self, write_envi, cube):
        header = write_envi(cube.astype("i2"))
        image = open_image(header)
        header.with_suffix(".img").write_bytes(b"1")
        with pytest.raises(DataError, match=r"scene.hdr: cannot be read .* cut off"):
            image.read()

    def test_missing_partner(self, write_envi, cube):
        header = write_envi(cube.astype("i2"))
        header.with_suffix(".img").rename(header.with_name("other.img"))
        with pytest.raises(DataError, match=r"scene.hdr: its data file is not beside it; looked for scene"):
            open_image(header)
        with pytest.raises(DataError, match=r"other.img: not one of the formats .* needs its header"):
            open_image(header.with_name("other.img"))

    def test_not_a_header(self, tmp_path):
        (tmp_path / "a.hdr").write_text("samples = 3\n")
        (tmp_path / "a.img").write_bytes(b"123")
        with pytest.raises(DataError, match=r"a.hdr: is no ENVI header"):
            open_image(tmp_path / "a.img")


def test_defaults_are_said(write_envi, cube):
    image = open_image(write_envi(cube.astype("<i2"), skip=("interleave", "byte order", "header offset")))
    np.testing.assert_array_equal(image.read(), cube)
    assert [note for note in image.assumptions if "not given" in note] == [
        "interleave: not given, taken as bsq",
        "byte order: not given, taken as little-endian",
    ]


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_a_window_of_a_huge_file_is_read_without_the_rest(tmp_path, interleave):
    """400 GB that are almost all holes: only reading in parts can answer."""
    bands, lines, samples = 200, 50_000, 20_000
    shape = {"bsq": (bands, lines, samples), "bil": (lines, bands, samples), "bip": (lines, samples, bands)}[interleave]
    header = tmp_path / "huge.hdr"
    header.write_text(
        f"ENVI\nsamples = {samples}\nlines = {lines}\nbands = {bands}\nheader offset = 0\ndata type = 2\n"
        f"interleave = {interleave}\nbyte order = 0\n"
    )
    try:
        with (tmp_path / "huge.img").open("wb") as file:
            file.truncate(2 * bands * lines * samples)
        written = np.memmap(tmp_path / "huge.img", "<i2", "r+", shape=shape)
    except OSError as error:
        pytest.skip(f"no sparse files here ({error})")
    index = {"bsq": (150, 40_001, 10_002), "bil": (40_001, 150, 10_002), "bip": (40_001, 10_002, 150)}[interleave]
    written[index] = 321
    del written
    before = _peak_memory()
    values = open_image(header).read((40_000, 10_000, 4, 5), [150, 3])
    assert values.shape == (2, 4, 5)
    assert values[0, 1, 2] == 321
    assert np.count_nonzero(values) == 1
    if before is not None:
        assert _peak_memory() - before < 50e6


def _peak_memory() -> int | None:
    """Most memory that this process ever held, mapped pages included, in bytes; None where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(lines["VmHWM"].split()[0]) * 1024
