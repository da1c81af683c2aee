"""specfast.data.open: the caller's corrections, units, estimates and checks that hold for every format."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.data import open as open_image
from specfast.data import sensors
from specfast.errors import DataError


@pytest.fixture
def path(write_envi, cube, bands):
    return write_envi(cube.astype("i2"), more=bands)


def said(image, *words: str) -> bool:
    return any(all(word in note for word in words) for note in image.assumptions)


def test_arguments_win_over_the_file(write_envi, cube, bands):
    more = f"{bands}\ndata ignore value = 3\nreflectance scale factor = 100\nsensor type = EMIT"
    more += "\nmap info = {UTM, 1, 1, 5, 6, 30, 30, 33, North, WGS-84, units=Meters}"
    given = {"wavelength": [500, 600, 700, 900, 1700], "fwhm": [3] * 5, "scale": 10, "offset": 1, "nodata": 4}
    given |= {"sensor": "prisma", "level": "L1", "gsd": 7}
    image = open_image(write_envi(cube.astype("i2"), more=more), **given)
    assert image.wavelength.tolist() == given["wavelength"]
    assert image.fwhm.tolist() == [3] * 5
    assert (image.scale, image.offset, image.nodata) == (10, 1, 4)
    assert (image.sensor, image.level, image.gsd) == ("prisma", "L1", 7)
    np.testing.assert_allclose(image.read(), np.where(cube == 4, np.nan, cube / 10 + 1), rtol=1e-6)


def test_given_micrometers_are_recognized(path):
    image = open_image(path, wavelength=[0.5, 0.6, 0.7, 0.9, 1.7], fwhm=[0.008] * 5)
    np.testing.assert_allclose(image.wavelength, [500, 600, 700, 900, 1700])
    np.testing.assert_allclose(image.fwhm, 8)
    assert said(image, "argument wavelength unit", "taken as um")


@pytest.mark.parametrize(
    ("unit", "values", "fwhm", "note"),
    [
        ("Nanometers", [450, 550, 650, 850, 1600], [8] * 5, None),
        ("nm", [450, 550, 650, 850, 1600], [8] * 5, None),
        ("um", [0.45, 0.55, 0.65, 0.85, 1.6], [0.008] * 5, None),
        ("Micrometers", [0.45, 0.55, 0.65, 0.85, 1.6], [8] * 5, "fwhm of about 8"),
        ("Micrometers", [450, 550, 650, 850, 1600], [8] * 5, "values are above 20: taken as nm"),
        ("Nanometers", [0.45, 0.55, 0.65, 0.85, 1.6], [0.008] * 5, "values are below 20: taken as um"),
        ("Nanometers", [450, 550, 650, 850, 1600], [0.008] * 5, "taken as um"),
        ("Unknown", [450, 550, 650, 850, 1600], [8] * 5, "'Unknown': values above 20, taken as nm"),
        (None, [0.45, 0.55, 0.65, 0.85, 1.6], [0.008] * 5, "not given: values below 20, taken as um"),
        ("Angstroms", [4500, 5500, 6500, 8500, 16000], [80] * 5, None),
        ("Meters", [4.5e-7, 5.5e-7, 6.5e-7, 8.5e-7, 1.6e-6], [8e-9] * 5, None),
        ("GHz", [299792.458 * 1000 / w for w in (450, 550, 650, 850, 1600)], None, "frequencies converted"),
        ("Wavenumber", [1e7 / w for w in (450, 550, 650, 850, 1600)], None, "wavenumbers"),
    ],
)
def test_units(write_envi, cube, unit, values, fwhm, note):
    wavelength = ", ".join(map(repr, values))
    if fwhm is None:  # 8 nm in a unit that runs the other way
        fwhm = [v * 8 / w for v, w in zip(values, (450, 550, 650, 850, 1600), strict=True)]
    more = f"wavelength = {{{wavelength}}}\nfwhm = {{{', '.join(map(repr, fwhm))}}}"
    more += f"\nwavelength units = {unit}" if unit else ""
    image = open_image(write_envi(cube.astype("i2"), more=more))
    np.testing.assert_allclose(image.wavelength, [450, 550, 650, 850, 1600])
    np.testing.assert_allclose(image.fwhm, 8)
    notes = [n for n in image.assumptions if n.startswith(("wavelength", "fwhm"))]
    assert len(notes) == (note is not None)
    assert not notes or note in notes[0]


def test_band_indices_are_no_wavelengths(write_envi, cube):
    more = "wavelength = {1, 2, 3, 4, 5}\nwavelength units = Index"
    image = open_image(write_envi(cube.astype("i2"), more=more))
    assert image.wavelength is None
    assert said(image, "band indices")


class TestRange:
    MORE = "wavelength units = nm\nwavelength = {340, 450, 550, 2551, 12000}"

    def test_raises_with_number_and_value(self, write_envi, cube):
        path = write_envi(cube.astype("i2"), more=self.MORE)
        message = r"scene.hdr: band 0 at 340 nm, band 3 at 2551 nm, band 4 at 12000 nm .* outside 350-2550 nm"
        with pytest.raises(DataError, match=message):
            open_image(path)

    def test_drop_leaves_them_out_of_samples_and_keeps_the_numbers(self, write_envi, cube):
        path = write_envi(cube.astype("i2"), more=self.MORE)
        image = open_image(path, out_of_range="drop", gsd=1, sensor="others", level="L2")
        assert image.good_bands.tolist() == [False, True, True, False, False]
        assert said(image, "3 bands outside 350-2550 nm dropped")
        np.testing.assert_array_equal(image.sample().image.numpy(), cube[1:3])
        np.testing.assert_array_equal(image.read(bands=[4]), cube[[4]])

    def test_keep(self, write_envi, cube):
        path = write_envi(cube.astype("i2"), more=self.MORE)
        image = open_image(path, out_of_range="keep", gsd=1, sensor="others", level="L2")
        assert image.good_bands.all()
        with pytest.raises(DataError, match="wavelength: band 0 is 340"):
            image.sample()

    def test_bad_bands_may_be_anywhere(self, write_envi, cube):
        path = write_envi(cube.astype("i2"), more=self.MORE + "\nbbl = {0, 1, 1, 0, 0}")
        assert open_image(path).good_bands.tolist() == [False, True, True, False, False]

    def test_unknown_choice(self, path):
        with pytest.raises(ValueError, match="out_of_range: expected one of raise, drop, keep; got 'warn'"):
            open_image(path, out_of_range="warn")


class TestFwhm:
    def test_missing_is_estimated(self, write_envi, cube):
        more = "wavelength units = nm\nwavelength = {500, 510, 521, 800, 812}"
        image = open_image(write_envi(cube.astype("i2"), more=more))
        np.testing.assert_allclose(image.fwhm, [10, 10.5, 11, 12, 12])
        assert said(image, "fwhm: unknown, estimated")

    def test_gaps_in_a_table_are_filled(self, write_envi, cube):
        more = "wavelength units = nm\nwavelength = {500, 510, 520, 530, 540}\nfwhm = {7, 0, nan, -1, 7}"
        image = open_image(write_envi(cube.astype("i2"), more=more))
        assert image.fwhm.tolist() == [7, 10, 10, 10, 7]
        assert said(image, "fwhm: unknown in 3 bands")

    def test_part_of_a_known_sensor_takes_the_widths_of_its_table(self, write_envi, cube):
        table = sensors()["aviris_classic"]
        some = [30, 31, 32, 33, 200]
        more = "wavelength units = nm\nwavelength = {" + ", ".join(f"{table.wavelength[b]:.2f}" for b in some) + "}"
        image = open_image(write_envi(cube.astype("i2"), more=more), sensor="AVIRIS")
        np.testing.assert_array_equal(image.fwhm, table.fwhm[some])
        assert said(image, "fwhm: not in the file, from the table aviris_classic")


class TestSensor:
    def test_table_fills_what_the_file_lacks(self, tmp_path):
        np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4, 5, 242)))
        image = open_image(tmp_path / "a.npy", sensor="EO-1 hyperion")
        table = sensors()["hyperion"]
        assert (image.sensor, image.gsd) == ("hyperion", 30)
        np.testing.assert_array_equal(image.wavelength, table.wavelength)
        np.testing.assert_array_equal(image.fwhm, table.fwhm)
        # Band 241 (2577 nm) is out of range, but uncalibrated and so bad from the start.
        np.testing.assert_array_equal(image.good_bands, table.good_bands)
        assert image.good_bands.sum() == 198
        assert said(image, "good bands", "uncalibrated")

    def test_a_name_for_several_tables_means_the_one_that_fits(self, tmp_path):
        for count, key in ((72, "casi_1500"), (144, "casi_1500_144")):
            np.save(tmp_path / "a.npy", np.random.default_rng(0).random((count, 4, 5)))
            image = open_image(tmp_path / "a.npy", sensor="CASI")
            assert (image.sensor, image.shape) == (key, (count, 4, 5))

    def test_unknown_names_are_kept_and_said(self, path):
        image = open_image(path, sensor="HyMap")
        assert image.sensor == "HyMap"
        assert said(image, "'HyMap' is none of")
        assert open_image(path, sensor="others").sensor == "others"

    def test_what_files_call_them(self, write_envi, cube, bands):
        for told, key in (
            ("AVIRIS", "aviris_classic"),
            ("Unknown", None),
            ("AVIRIS-NG (Airborne)", "aviris_ng"),
            ("HyMap", "HyMap"),
        ):
            image = open_image(write_envi(cube.astype("i2"), more=f"{bands}\nsensor type = {told}"))
            assert image.sensor == key

    @pytest.mark.parametrize(
        ("name", "sensor", "level"),
        [
            ("f080611t01p00r06rdn_c_ort", "aviris_classic", "L1"),
            ("ang20180814t224053_rfl_v2r2", "aviris_ng", "L2"),
            ("AV320240101t000000_000_L2A_RFL_ORT", "aviris_3", "L2"),
            ("EMIT_L1B_RAD_001_20230316T045133", "emit", "L1"),
            ("ENMAP01-____L2A-DT0000001", "enmap", "L2"),
            ("gardner_crfl", None, None),
        ],
    )
    def test_names_of_files(self, write_envi, cube, bands, name, sensor, level):
        image = open_image(write_envi(cube.astype("i2"), more=bands, name=f"{name}.img", header=f"{name}.hdr"))
        assert (image.sensor, image.level) == (sensor, level)
        assert said(image, "from the file's name") == (sensor is not None)

    def test_numbers_of_indian_pines_are_scaled_only_if_it_is_named(self, tmp_path):
        np.save(tmp_path / "a.npy", np.full((4, 5, 220), 2000, "u2"))
        named = open_image(tmp_path / "a.npy", sensor="aviris_1992")
        assert (named.scale, named.offset, named.level) == (500, -2, "L1")
        assert float(named.read()[0, 0, 0]) == 2
        assert open_image(tmp_path / "a.npy", sensor="aviris_1992", scale=1, offset=0).read()[0, 0, 0] == 2000
        assert open_image(tmp_path / "a.npy").scale == 1
        np.save(tmp_path / "b.npy", np.full((4, 5, 220), 4.0))
        assert open_image(tmp_path / "b.npy", sensor="aviris_1992").scale == 1


class TestPixelsLookedAt:
    def write(self, tmp_path, values):
        np.save(tmp_path / "a.npy", values)
        return tmp_path / "a.npy"

    @pytest.fixture
    def values(self):
        return np.random.default_rng(0).random((6, 90, 100)).astype("f4")

    def open(self, path, **more):
        wavelength = [450, 500, 550, 600, 650, 700]
        return open_image(path, **({"wavelength": wavelength, "nodata": -1, "sensor": "others", "level": "L2"} | more))

    def test_not_when_opening(self, tmp_path, values, monkeypatch):
        from specfast.data.cubes import MappedCube

        read, windows = MappedCube.read, []
        monkeypatch.setattr(MappedCube, "read", lambda self, *a: windows.append(a[:2]) or read(self, *a))
        image = self.open(self.write(tmp_path, values))
        assert not windows
        assert image.good_bands.all()
        assert 0 < len(windows) <= 25
        assert all(s.stop - s.start <= 8 for window in windows for s in window)
        seen = len(windows)
        _ = image.assumptions, image.good_bands
        assert len(windows) == seen

    def test_bands_without_data_and_constant_ones(self, tmp_path, values):
        values[2], values[4] = -1, 0.25
        image = self.open(self.write(tmp_path, values))
        assert image.good_bands.tolist() == [True, True, False, True, False, True]
        assert said(image, "bands 2 hold no data")
        assert said(image, "bands 4 hold one value (0.25)")

    def test_a_border_without_data_does_not_matter(self, tmp_path, values):
        values[:, :, :70] = -1
        values[3] = -1
        image = self.open(self.write(tmp_path, values))
        assert np.flatnonzero(~image.good_bands).tolist() == [3]

    def test_nothing_is_concluded_from_constant_or_empty_images(self, tmp_path, values):
        for constant in (np.full_like(values, 0.5), np.full_like(values, -1), values[:, :2, :2] * 0):
            assert self.open(self.write(tmp_path, constant)).good_bands.all()

    @pytest.mark.parametrize(
        ("factor", "level", "hint"),
        [(1, "L2", None), (10000, "L2", "scale=10000"), (20, "L1", None), (5000, "L1", "scale="), (1, None, None)],
    )
    def test_hint_at_a_scale(self, tmp_path, values, factor, level, hint):
        image = self.open(self.write(tmp_path, values * factor), level=level)
        assert said(image, "hardly", hint or "") == (hint is not None)
        assert image.scale == 1


class TestFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none.hdr: no such file"):
            open_image(tmp_path / "none.hdr")

    def test_folder(self, tmp_path):
        with pytest.raises(DataError, match="is a folder"):
            open_image(tmp_path)

    @pytest.mark.parametrize("name", ["a.hdr", "a.img", "a.npy", "a.mat", "a.tif", "a.nc"])
    def test_empty(self, tmp_path, name):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=rf"{name}: the file is empty"):
            open_image(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.jpg", "a", "a.nc", "a.tif"])
    def test_unknown_format(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"something else entirely")
        with pytest.raises(DataError, match=rf"{name}: not one of the formats .*ENVI"):
            open_image(str(tmp_path / name))
