"""The table of sensors, units of radiance, FWHM from spacing."""

from __future__ import annotations

import numpy as np
import pytest

from specfast.attributes import SENSOR_SENTENCES
from specfast.data import find_sensor, sensors
from specfast.data.sensors import model_name, sensor_from_wavelength
from specfast.data.spacing import estimate_fwhm
from specfast.data.units import radiance_factor

BAND_COUNTS = {
    "aviris_classic": 224,
    "aviris_classic_223": 223,
    "aviris_1992": 220,
    "indian_pines": 200,
    "aviris_ng": 425,
    "aviris_3": 284,
    "casi_1500": 72,
    "casi_1500_144": 144,
    "desis": 235,
    "emit": 285,
    "emit_rounded": 285,
    "enmap": 224,
    "hyperion": 242,
    "hyperion_189": 189,
    "prisma": 234,
    "rosis": 103,
}


def test_all_sixteen_are_there_and_plausible():
    assert {key: len(sensor) for key, sensor in sensors().items()} == BAND_COUNTS
    for key, sensor in sensors().items():
        assert sensor.key == key
        assert sensor.source
        assert ((sensor.wavelength > 340) & (sensor.wavelength < 2600)).all()
        known = sensor.fwhm[~np.isnan(sensor.fwhm)]
        assert ((known > 2) & (known < 20)).all()
        assert sensor.attribute in (None, "avc", "avng", "av3")
        assert sensor.good_bands.dtype == bool
        assert not sensor.wavelength.flags.writeable


def test_sources_are_those_of_the_shared_tables(shared):
    tables = list((shared / "data" / "sensor_tables").glob("*.csv"))
    assert len(tables) == 16
    known = {tuple(np.sort(sensor.wavelength)): sensor for sensor in sensors().values()}
    for table in tables:
        source, _, *rows = table.read_text().splitlines()
        wavelength = np.sort([float(row.split(",")[1]) for row in rows])
        assert known[tuple(wavelength)].source.startswith(source.lstrip("# "))


@pytest.mark.parametrize(
    ("name", "bands", "key"),
    [
        ("AVIRIS", None, "aviris_classic"),
        ("aviris classic", None, "aviris_classic"),
        ("AVC", None, "aviris_classic"),
        ("AVIRIS-Classic", 223, "aviris_classic_223"),
        ("avng", None, "aviris_ng"),
        ("AVIRIS-Next-Generation", None, "aviris_ng"),
        ("aviris3", None, "aviris_3"),
        ("Airborne Visible/Infrared Imaging Spectrometer 3 (AVIRIS-3)", None, "aviris_3"),
        ("EMIT (Earth Surface Mineral Dust Source Investigation)", 285, "emit"),
        ("EnMAP HSI", None, "enmap"),
        ("ENMAP", 224, "enmap"),
        ("CASI-1500", 144, "casi_1500_144"),
        ("Indian Pines", 200, "indian_pines"),
        ("indian_pines", 220, "aviris_1992"),
        ("aviris_1992", 200, "indian_pines"),
        ("92AV3C", None, "aviris_1992"),
        ("Hyperion", 189, "hyperion_189"),
        ("ROSIS-03", None, None),
        ("Rosis", None, "rosis"),
        ("WorldView", None, None),
        ("", None, None),
    ],
)
def test_names(name, bands, key):
    found = find_sensor(name, bands)
    assert (found and found.key) == key


def test_lookup_by_alias_and_unknown_names():
    assert sensors()["AVIRIS-NG"].key == "aviris_ng"
    assert "AVIRIS-NG" not in sensors()
    with pytest.raises(KeyError, match=r"unknown sensor 'hymap'; known: aviris_classic, "):
        sensors()["hymap"]
    sensors().clear()
    assert len(sensors()) == 16


def test_names_for_the_model():
    assert {model_name(key) for key, s in sensors().items() if s.attribute} == {"avc", "avng", "av3"}
    assert {"avc", "avng", "av3"} < set(SENSOR_SENTENCES)
    assert (model_name("enmap"), model_name("my camera")) == ("EnMAP", "my camera")


@pytest.mark.parametrize(
    ("key", "one_based"),
    [
        ("aviris_ng", [1, *range(195, 212), *range(281, 320), *range(421, 426)]),
        ("aviris_classic", [*range(104, 115), *range(153, 169)]),
        ("aviris_3", [*range(130, 142), *range(191, 214)]),
    ],
)
def test_water_bands(key, one_based):
    sensor = sensors()[key]
    assert (sensor.water_bands["L2"] + 1).tolist() == one_based
    assert "L1" not in sensor.water_bands
    centers = sensor.wavelength[sensor.water_bands["L2"]]
    inside = (centers > 1310) & (centers < 1470) | (centers > 1770) & (centers < 1970)
    assert inside.sum() >= len(centers) - 6  # the six at the ends of AVIRIS-NG


def test_water_bands_of_the_223_band_table_are_the_same_wavelengths():
    full, part = sensors()["aviris_classic"], sensors()["aviris_classic_223"]
    np.testing.assert_allclose(
        full.wavelength[full.water_bands["L2"]], part.wavelength[part.water_bands["L2"]], atol=1.0
    )


def test_sensor_from_wavelength():
    for key, sensor in sensors().items():
        rng = np.random.default_rng(0)
        found, difference = sensor_from_wavelength(sensor.wavelength + rng.uniform(-0.02, 0.02, len(sensor)))
        assert found.key == key
        assert difference <= 0.02
    assert sensor_from_wavelength(sensors()["enmap"].wavelength + 3) is None
    assert sensor_from_wavelength(np.linspace(400, 2500, 224)) is None


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("uW/cm^2/SR/nm", 1),
        ("uW nm-1 cm-2 sr-1", 1),
        ("µW cm-2 sr-1 nm-1", 1),
        ("W/m^2/sr/um", 0.1),
        ("W m-2 sr-1 micrometer-1", 0.1),
        ("W/(m2*sr*nm)", 100),
        ("mW/m^2/sr/nm", 0.1),
        ("mW cm-2 sr-1 um-1", 1),
        ("unitless", None),
        ("W m-2", None),
        ("", None),
        (None, None),
    ],
)
def test_radiance_units(unit, factor):
    assert radiance_factor(unit) == factor


class TestEstimateFwhm:
    def test_even_and_uneven(self):
        np.testing.assert_allclose(estimate_fwhm([400, 410, 420]), 10)
        np.testing.assert_allclose(estimate_fwhm([400, 410, 422]), [10, 11, 12])
        np.testing.assert_allclose(estimate_fwhm([422, 410, 400]), [12, 11, 10])

    def test_gaps_do_not_widen_their_neighbors(self):
        np.testing.assert_allclose(estimate_fwhm([400, 410, 420, 700, 710, 720]), 10)

    @pytest.mark.parametrize("key", ["aviris_classic", "prisma", "hyperion", "enmap", "emit", "aviris_ng"])
    def test_unsorted_and_overlapping_detectors(self, key):
        sensor = sensors()[key]
        ratio = estimate_fwhm(sensor.wavelength) / sensor.fwhm
        assert 0.6 < ratio.min() < ratio.max() < 1.4

    def test_a_stray_band_between_detectors(self):
        """As bands 159 and 160 of AVIRIS-Classic, 1.15 nm apart."""
        np.testing.assert_allclose(estimate_fwhm([400, 410, 420, 430, 431, 427, 437, 447]), 10)

    def test_any_order(self):
        wavelength = np.arange(400.0, 900, 10)
        shuffled = np.random.default_rng(0).permutation(wavelength)
        np.testing.assert_allclose(estimate_fwhm(shuffled), 10)

    def test_doubles_and_single_bands(self):
        np.testing.assert_allclose(estimate_fwhm([400, 410, 410, 420]), 10)
        assert estimate_fwhm([500]) is None
        assert estimate_fwhm([500, 500]) is None
        assert estimate_fwhm([]) is None
