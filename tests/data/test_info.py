"""specfast info and specfast sensors."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from specfast.cli import main
from specfast.data import sensors


@pytest.fixture
def path(write_envi, cube, bands):
    more = f"{bands.replace('850', '640')}\nbbl = {{1, 1, 0, 0, 1}}\nsensor type = EMIT\nreflectance scale factor = 100"
    return write_envi(cube.astype("i2"), more=f"{more}\ndata ignore value = 3")


def test_info(path, capsys):
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    for line in (
        str(path),
        "shape       5 bands, 6 x 7 pixels",
        "stored      int16 (envi), value = stored / 100, nodata 3",
        "sensor      emit",
        "level       L2, reflectance",
        "wavelength  450.00 to 1600.00 nm, not sorted: jumps back between bands 2/3 (counted from 0)",
        "fwhm        8.00 to 12.00 nm",
        "gsd         60 m",
        "good bands  3 of 5: 0-1, 4 (counted from 0)",
        "crs         unknown",
        "- gsd: not in the file, 60 m as usual for emit",
    ):
        assert line in text


def test_info_of_a_file_that_says_nothing(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4, 5, 6)))
    assert main(["info", str(tmp_path / "a.npy"), "--gsd", "7", "--level", "radiance"]) == 0
    text = capsys.readouterr().out
    assert "unscaled, nodata unknown" in text
    assert "sensor      unknown" in text
    assert "gsd         7 m" in text
    assert "L1, radiance" in text


def test_json_holds_all_tables(path, capsys):
    assert main(["info", str(path), str(path), "--json", "--sensor", "prisma"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    assert first["shape"] == [5, 6, 7]
    assert first["wavelength"] == [450, 550, 650, 640, 1600]
    assert first["good_bands"] == [True, True, False, False, True]
    assert (first["sensor"], first["scale"], first["nodata"], first["crs"]) == ("prisma", 100, 3, None)
    assert first["assumptions"]


def test_json_is_strict_whatever_the_numbers(write_envi, cube, capsys):
    more = "wavelength units = nm\nwavelength = {450, nan, 650, 850, 1600}\ndata ignore value = nan"
    more += "\ndata gain values = {1, 2, 3, 4, 5}"
    header = write_envi(cube.astype("f4"), more=more)
    assert main(["info", str(header), "--json"]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    (facts,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert facts["wavelength"][1] is None
    assert facts["scale"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert facts["nodata"] == "nan"
    assert main(["info", str(header)]) == 0
    assert "scale and offset a band" in capsys.readouterr().out


def test_errors_name_the_file_and_the_others_are_shown(path, tmp_path, capsys):
    missing = tmp_path / "none.hdr"
    assert main(["info", str(missing)]) == 2
    assert capsys.readouterr().err == f"specfast info: {missing}: no such file\n"
    assert main(["info", str(missing), str(path)]) == 2
    captured = capsys.readouterr()
    assert "none.hdr: no such file" in captured.err
    assert "5 bands" in captured.out
    assert main(["info", str(path), "--level", "L9"]) == 2
    assert "unknown processing level" in capsys.readouterr().err


def test_out_of_range_is_shown_unless_asked(write_envi, cube, capsys):
    header = write_envi(cube.astype("i2"), more="wavelength = {100, 450, 550, 650, 850}")
    assert main(["info", str(header)]) == 0
    assert "100.00 to 850.00 nm" in capsys.readouterr().out
    assert main(["info", str(header), "--out-of-range", "raise"]) == 2
    assert "band 0 at 100 nm" in capsys.readouterr().err


def test_info_on_real_files(shared, capsys):
    folder = shared / "data"
    files = [*folder.glob("*/*.mat"), *folder.glob("enmap_potsdam/images/*_0.tif"), *folder.glob("emit*/*.hdr")]
    files = [file for file in files if "disjoint" not in file.name]
    assert main(["info", *map(str, files)]) == 0
    assert capsys.readouterr().out.count("  assumed") == len(files) > 8


def test_sensors(capsys):
    assert main(["sensors"]) == 0
    text = capsys.readouterr().out
    for key in sensors():
        assert f"\n{key} " in text
    assert main(["sensors", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["key"] for row in rows] == list(sensors())
    assert [int(row["bands"]) for row in rows] == [len(sensor) for sensor in sensors().values()]


def test_one_sensor(capsys):
    assert main(["sensors", "AVIRIS-NG", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    table = sensors()["aviris_ng"]
    np.testing.assert_allclose([float(row["wavelength_nm"]) for row in rows], table.wavelength)
    np.testing.assert_allclose([float(row["fwhm_nm"]) for row in rows], table.fwhm)
    assert [i for i, row in enumerate(rows) if row["water_band_at"]] == table.water_bands["L2"].tolist()
    assert main(["sensors", "hyperion"]) == 0
    text = capsys.readouterr().out
    assert "source: USGS" in text
    assert text.count("uncalibrated") == 44
    assert main(["sensors", "nope"]) == 2
    assert "unknown sensor 'nope'; known: aviris_classic" in capsys.readouterr().err
