"""band_table: what is told a model of bare arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specfast.data import BandTable, band_table, find_sensor
from tests.models.conftest import make_sample


def test_a_known_sensor_brings_everything():
    sensor = find_sensor("enmap")
    table = band_table("EnMAP HSI", "reflectance")
    assert len(table) == len(sensor)
    np.testing.assert_allclose(table.wavelength, sensor.wavelength, rtol=1e-6)
    np.testing.assert_allclose(table.fwhm, sensor.fwhm, rtol=1e-6)
    assert (table.gsd, table.sensor, table.level) == (30.0, "EnMAP", "L2")


def test_uncalibrated_and_out_of_range_bands_are_left_out():
    sensor = find_sensor("hyperion")
    table = band_table("hyperion", "L1")
    kept = sensor.good_bands & (sensor.wavelength >= 350) & (sensor.wavelength <= 2550)
    assert 0 < kept.sum() < len(sensor)
    np.testing.assert_allclose(table.wavelength, sensor.wavelength[kept], rtol=1e-6)


@pytest.mark.parametrize("bands", [[5, 3, 200], np.array([5, 3, 200])])
def test_bands_are_chosen_in_the_order_given(bands):
    sensor, table = find_sensor("enmap"), band_table("enmap", "L2", bands=bands)
    np.testing.assert_allclose(table.wavelength, sensor.wavelength[[5, 3, 200]], rtol=1e-6)
    np.testing.assert_allclose(table.fwhm, sensor.fwhm[[5, 3, 200]], rtol=1e-6)
    assert len(band_table("enmap", "L2", bands=slice(10, 20))) == 10


def test_the_model_is_told_the_published_name():
    assert band_table("AVIRIS-NG", "L1", gsd=4.0).sensor == "avng"


def test_widths_come_from_the_table_where_its_bands_are_meant():
    sensor = find_sensor("enmap")
    near = sensor.wavelength[10:20] + 0.5
    np.testing.assert_allclose(band_table("enmap", "L2", wavelength=near).fwhm, sensor.fwhm[10:20], rtol=1e-6)
    elsewhere = band_table("enmap", "L2", wavelength=[1395.0, 1420.0, 1445.0])  # in the gap of its detectors
    np.testing.assert_allclose(elsewhere.fwhm, 25.0)
    given = band_table("mine", "L2", gsd=2.0, wavelength=[500.0, 520.0], fwhm=[7.0, 8.0])
    assert given.fwhm.tolist() == [7.0, 8.0]
    assert given.sensor == "mine"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("nothing", "L2"), {}, "sensor: 'nothing' is none of aviris_classic, .*pass wavelength"),
        (("enmap", "L3"), {}, "level: unknown processing level 'L3'"),
        (("aviris_ng", "L1"), {}, "gsd: unknown for 'aviris_ng', since it depends on the flight"),
        (("mine", "L2"), {"wavelength": [500.0, 510.0]}, "gsd: unknown for 'mine'"),
        (("enmap", "L2"), {"bands": [224]}, "bands: expected numbers from 0 to 223; got 224 to 224"),
        (("enmap", "L2"), {"bands": [-1]}, "bands: expected numbers from 0 to 223; got -1"),
        (("enmap", "L2"), {"bands": []}, "bands: expected a list of band numbers"),
        (("enmap", "L2"), {"bands": [True, False]}, "bands: expected a list of band numbers"),
        (("enmap", "L2"), {"wavelength": [0.5, 0.6]}, r"wavelength: band 0 is 0.5; .*multiply by 1000"),
        (("enmap", "L2"), {"wavelength": [[500.0]]}, "wavelength: expected a list of numbers in nm"),
        (("enmap", "L2"), {"wavelength": [500.0, 510.0], "fwhm": [5.0]}, "fwhm: expected 2 numbers"),
        (("mine", "L2"), {"wavelength": [500.0], "gsd": 1.0}, "fwhm: cannot be estimated"),
    ],
)
def test_what_is_missing_or_wrong_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        band_table(*arguments, **options)


def test_batches_and_samples():
    table = band_table("enmap", "L2", bands=range(5))
    batch = table.batch(torch.rand(2, 5, 8, 16))
    assert batch.band_counts == (5, 5)
    assert torch.equal(batch.wavelength[5:], table.wavelength)
    sample = table.sample(torch.rand(5, 8, 16))
    assert sample.gsd == 30.0
    for image, expected in ((torch.rand(2, 4, 8, 8), r"\[B, C, H, W\] with C=5 bands; got \[2, 4, 8, 8\]"),):
        with pytest.raises(ValueError, match=expected):
            table.batch(image)
    with pytest.raises(ValueError, match=r"\[C, H, W\] with C=5 bands"):
        table.sample(torch.rand(1, 5, 8, 8))


def test_a_sample_s_table():
    sample = make_sample(4, level="radiance")
    table = BandTable.of(sample)
    assert torch.equal(table.wavelength, sample.wavelength)
    assert table.level == "L1"
    described = table.to_dict()
    assert described["sensor"] == "av3"
    assert described["wavelength_nm"] == pytest.approx(sample.wavelength.tolist(), abs=1e-3)
