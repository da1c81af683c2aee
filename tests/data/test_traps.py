"""What real files hold that a reader must not stumble over, each on the file that shows it."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import scipy.io

from specfast.data import open as open_image
from specfast.data import sensors
from specfast.errors import DataError


@pytest.fixture(scope="module")
def data(shared):
    return shared / "data"


def backward(wavelength) -> list[int]:
    """Bands (counted from 1) after which the wavelength falls."""
    return (np.flatnonzero(np.diff(wavelength) < 0) + 1).tolist()


def said(image, *words: str) -> bool:
    return any(all(word in note for word in words) for note in image.assumptions)


class TestOrderOfBands:
    def test_aviris_classic_is_not_sorted_and_stays_so(self, data):
        path = data / "aviris_salton_sea" / "salton_sea_roi.mat"
        image = open_image(path, level="L2")
        assert backward(image.wavelength) == [32, 96, 160]
        stored = scipy.io.loadmat(path)
        np.testing.assert_array_equal(image.wavelength, stored["params"][0, 0]["wavelength"][0])
        expected = np.moveaxis(stored["I"], 2, 0)[[31, 32, 95, 96]].astype(np.float32)
        np.testing.assert_array_equal(image.read(bands=[31, 32, 95, 96]), expected)
        np.testing.assert_array_equal(
            image.sample().wavelength.numpy(), image.wavelength[image.good_bands].astype("f4")
        )

    def test_enmap_detectors_overlap_in_the_file_and_in_the_table(self, data):
        image = open_image(data / "enmap_potsdam" / "images" / "enmap_potsdam_tile_128_0.tif")
        assert backward(image.wavelength) == [91]
        np.testing.assert_allclose(sensors()["enmap"].wavelength, image.wavelength)
        np.testing.assert_allclose(sensors()["enmap"].fwhm, image.fwhm, atol=1e-4)

    @pytest.mark.parametrize(
        ("sensor", "places"),
        [("aviris_classic", [32, 96, 160]), ("prisma", [63]), ("hyperion", [70]), ("indian_pines", [31, 94])],
    )
    def test_tables_keep_the_order_of_the_products(self, sensor, places):
        assert backward(sensors()[sensor].wavelength) == places

    def test_indian_pines_table_is_that_of_220_bands_without_the_dropped(self):
        dropped = np.array([*range(104, 109), *range(150, 164), 220]) - 1
        full, corrected = sensors()["aviris_1992"], sensors()["indian_pines"]
        np.testing.assert_array_equal(np.delete(full.wavelength, dropped), corrected.wavelength)
        np.testing.assert_array_equal(full.water_bands["L1"], dropped)


class TestUnits:
    def test_no_unit_in_an_emit_header(self, data):
        image = open_image(data / "emit_unmix_10x10" / "emit20250324t221005_jpl_unmix_ex.hdr")
        assert image.wavelength[0] == pytest.approx(381.0056, abs=1e-3)
        assert said(image, "wavelength unit not given", "taken as nm")

    def test_unknown_unit_in_a_hyperion_header(self, data):
        image = open_image(data / "envi_headers" / "cubus_gamsberg_subset")
        assert (image.wavelength[0], image.wavelength[-1]) == pytest.approx((426.82, 2324.91), abs=0.01)
        assert said(image, "'Unknown'", "taken as nm")

    def test_micrometers_without_a_unit_in_a_rosis_file(self, data):
        image = open_image(data / "rosis_pavia_crop" / "reg_pavia_dataset.mat")
        assert (image.wavelength[0], image.wavelength[-1]) == pytest.approx((430, 860))
        assert said(image, "values below 20, taken as um")

    def test_micrometers_in_an_aviris_3_header(self, data):
        image = open_image(data / "isofit_spectra" / "av3_AV320250308t200738_rdn.hdr", gsd=5)
        assert image.wavelength[0] == pytest.approx(389.75)
        assert not said(image, "unit")
        assert (image.sensor, image.level) == ("aviris_3", "L1")
        assert 5 < np.nanmax(image.read()) < 100

    def test_a_misspelt_name_of_the_table_in_a_muufl_file(self, data):
        image = open_image(data / "casi_muufl" / "an_hsi_img_for_class_demo.mat")
        assert image.wavelength[0] == pytest.approx(367.7)
        assert image.shape == (72, 31, 20)

    def test_micrometers_and_reflectance_scale_in_the_berlin_header(self, data, tmp_path):
        """The header is real; its data (220 x 400 x 177) are not, so a file of zeros without blocks stands for them."""
        header = tmp_path / "enmap_berlin.hdr"
        header.write_bytes((data / "envi_headers" / "enmap_berlin.hdr").read_bytes())
        with (tmp_path / "enmap_berlin").open("wb") as file:
            file.truncate(220 * 400 * 177 * 2)
        image = open_image(header)
        assert image.shape == (177, 400, 220)
        assert image.wavelength.min() > 400
        assert 5 < image.fwhm.min() < image.fwhm.max() < 20
        assert (image.scale, image.level, image.nodata, image.gsd) == (10000, "L2", -99, 30)
        assert image.crs.startswith("PROJCS")
        # Rotation is none, so the corner is that of the map info.
        assert image.transform == pytest.approx((30, 0, 380952.37, 0, -30, 5820372.35))


class TestFwhm:
    @pytest.mark.parametrize("name", ["an_hsi_image_sub_for_demo.mat", "an_hsi_img_for_tgt_det_demo.mat"])
    def test_missing_in_casi_files(self, data, name):
        image = open_image(data / "casi_muufl" / name)
        assert image.fwhm == pytest.approx(np.full(72, 9.5), abs=0.2)
        assert said(image, "fwhm", "estimated from the bands' spacing")

    def test_missing_in_the_rosis_file(self, data):
        image = open_image(data / "rosis_pavia_crop" / "reg_pavia_dataset.mat")
        assert image.fwhm == pytest.approx(np.full(103, 430 / 102))
        assert said(image, "fwhm", "estimated")

    def test_missing_in_an_aviris_file_but_known_of_the_sensor(self, data):
        image = open_image(data / "aviris_vegetation_90" / "a_hsi_img_for_VI_demo.mat")
        np.testing.assert_array_equal(image.fwhm, sensors()["aviris_classic"].fwhm)
        assert said(image, "fwhm", "from the table aviris_classic")

    def test_narrow_and_wide_ones_are_kept(self):
        desis = sensors()["desis"].fwhm
        assert (desis.min(), desis.max()) == (2.4, 6.6)
        assert sensors()["prisma"].fwhm.max() > 15

    def test_given_ones_are_kept(self, data):
        image = open_image(data / "isofit_spectra" / "prism_prm20231110t071521_rdn_two_px", gsd=1, sensor="PRISM")
        assert image.fwhm[0] == pytest.approx(3.3317396)
        assert not said(image, "fwhm")
        assert image.sample().sensor == "PRISM"


class TestBadBandsAndNodata:
    def test_enmap_nodata_scale_and_six_bad_bands(self, data):
        path = data / "enmap_potsdam" / "images" / "enmap_potsdam_tile_128_0.tif"
        image = open_image(path)
        assert np.flatnonzero(~image.good_bands).tolist() == [129, 130, 131, 132, 133, 134]
        assert (image.scale, image.nodata, image.level, image.gsd) == (10000, -32768, "L2", 30)
        with rasterio.open(path) as raster:
            stored = raster.read()
        np.testing.assert_allclose(image.read(bands=[0, 200]), stored[[0, 200]] / np.float32(10000), rtol=1e-6)
        assert np.isnan(image.read(bands=[129])).all()
        sample = image.sample()
        assert sample.image.shape[0] == 218
        assert bool(sample.valid.all())

    def test_emit_bad_bands_hold_minus_a_hundredth(self, data):
        image = open_image(data / "emit_unmix_10x10" / "emit20250324t221005_jpl_unmix_ex")
        bad = np.flatnonzero(~image.good_bands)
        assert len(bad) == 41
        np.testing.assert_allclose(image.read(bands=bad), -0.01)
        assert image.nodata == -9999
        assert float(image.read(bands=image.good_bands).min()) > -0.01

    def test_salton_sea_has_nan_in_its_bad_bands(self, data):
        image = open_image(data / "aviris_salton_sea" / "salton_sea_roi.mat", level="L2")
        bad = ~image.good_bands
        assert bad.sum() == 20
        assert np.isnan(image.read(bands=bad)).all()
        sample = image.sample((0, 0, 9, 9))
        assert bool(sample.valid.all())
        assert sample.image.shape[0] == 204
        with_bad = image.sample((0, 0, 9, 9), bands=[5, np.flatnonzero(bad)[0]])
        assert not with_bad.valid.any()
        assert not with_bad.image.any()

    def test_zeros_in_water_bands_of_a_file_without_a_bad_band_list(self, data):
        path = data / "aviris_vegetation_90" / "a_hsi_img_for_VI_demo.mat"
        image = open_image(path, level="L2", scale=10000)
        stored = scipy.io.loadmat(path)["hsi_img"].reshape(-1, 224)
        empty = (stored == stored[0]).all(axis=0)
        assert empty.sum() == 43
        np.testing.assert_array_equal(~image.good_bands, empty)
        assert said(image, "hold one value (0)", "taken as bad")

    def test_unscaled_reflectance_is_hinted_at_not_guessed(self, data):
        path = data / "aviris_vegetation_90" / "a_hsi_img_for_VI_demo.mat"
        image = open_image(path, level="L2")
        assert image.scale == 1
        assert said(image, "hardly reflectance", "scale=10000")
        scaled = open_image(path, level="L2", scale=10000)
        assert not said(scaled, "hardly")
        np.testing.assert_allclose(scaled.read() * 10000, image.read(), rtol=1e-6)
        assert said(open_image(data / "envi_headers" / "cubus_gamsberg_subset"), "scale=10000")


class TestIndianPines:
    def test_named_the_file_of_numbers_becomes_radiance(self, data):
        path = data / "indian_pines" / "Indian_pines_corrected.npy"
        image = open_image(path, sensor="indian_pines")
        assert (image.shape, image.sensor, image.level) == ((200, 145, 145), "indian_pines", "L1")
        assert (image.scale, image.offset, image.gsd) == (500, -2, 20)
        stored = np.load(path)
        np.testing.assert_allclose(image.read((3, 4, 5, 6), [7]), stored[3:8, 4:10, 7][None] / 500 - 2, rtol=1e-4)
        assert 0 < float(np.median(image.read())) < 10
        np.testing.assert_array_equal(image.wavelength, sensors()["indian_pines"].wavelength)
        assert said(image, "scale 500, offset -2")
        assert image.sample((0, 0, 8, 8)).sensor == "avc"

    def test_unnamed_nothing_is_guessed(self, data):
        image = open_image(data / "indian_pines" / "Indian_pines_corrected.npy")
        assert (image.wavelength, image.sensor, image.level, image.scale) == (None, None, None, 1)
        assert said(image, "axis 2", "taken")
        with pytest.raises(DataError, match=r"wavelength and fwhm and gsd and sensor and level unknown; pass .*gsd=30"):
            image.sample()

    def test_a_sensor_of_another_band_count_fills_nothing_and_says_which_tables_fit(self, data):
        image = open_image(data / "indian_pines" / "Indian_pines_corrected.npy", sensor="enmap")
        assert image.wavelength is None
        assert said(image, "enmap has 224 bands and the file 200", "tables with 200 bands: indian_pines")


def test_georeference_of_a_rotated_scene_cut_out_of_a_larger_one(data):
    image = open_image(data / "aviris_salton_sea" / "salton_sea_roi.mat")
    assert (image.gsd, image.crs, image.transform) == (16.9, "EPSG:32611", None)
    assert said(image, "map info is of a larger scene")


def test_label_maps_and_spectra_are_no_scenes_without_wavelengths(data):
    with pytest.raises(DataError, match=r"Indian_pines_gt.npy: expected an array with 3 axes, got shape \(145, 145\)"):
        open_image(data / "indian_pines" / "Indian_pines_gt.npy")
    with pytest.raises(DataError, match=r"holds no numeric array with 3 axes; it holds indianpines_disjoint_dset"):
        open_image(data / "indian_pines" / "indianpines_disjoint_dset.mat")
    image = open_image(data / "enmap_potsdam" / "enmap_landcover_unstyled.tif")
    with pytest.raises(DataError, match="wavelength and fwhm and level unknown"):
        image.sample((0, 0, 2, 2))
