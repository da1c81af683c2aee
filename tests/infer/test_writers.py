"""What programs read from the files: values, place, nodata, names, colors; and that an older file stays until then."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from specfast.data import open as open_image
from specfast.errors import DataError
from specfast.infer import map_scene
from specfast.infer.raster import Grid
from specfast.infer.writers import crs as crs_module

COLORS = [(200, 10, 20), (0, 120, 250)]
NORTH_UP, SHEARED = (30.0, 0.0, 400000.0, 0.0, -30.0, 5800000.0), (30.0, 5.0, 400000.0, 0.0, -30.0, 5800000.0)


@pytest.fixture
def rasterio():
    pytest.importorskip("rasterio.shutil")
    return pytest.importorskip("rasterio")


@pytest.fixture
def image(make_image):
    return make_image(300, 37, holes=((0, 0, 9, 9),))


def category_names(rasterio, path, folder) -> str:
    """The VRT that GDAL makes of a file: names every category that GDAL sees."""
    rasterio.shutil.copy(path, folder / "seen.vrt", driver="VRT")
    text = (folder / "seen.vrt").read_text()
    return text[text.index("<CategoryNames>") : text.index("</CategoryNames>")]


@pytest.mark.parametrize("cog", [False, True])
def test_geotiff_of_classes(rasterio, image, classes, tmp_path, cog):
    out = tmp_path / "map.tif"
    result = map_scene(image, classes(), out, colors=COLORS, probabilities=True, cog=cog, tags={"model": "runs/a"})
    assert [path.name for path in result.files] == ["map.tif", "map.tif.aux.xml", "map_probabilities.tif"]
    first, second = image.read()[:2]
    with rasterio.open(out) as file:
        assert np.array_equal(file.read(1), np.where(np.isnan(first), 0, 1 + (second > first)))
        assert file.nodata == 0
        assert file.crs.to_epsg() == 32633
        assert tuple(file.transform)[:6] == image.transform  # turned
        assert file.profile["tiled"]
        assert file.profile["compress"] == "deflate"
        assert [file.colormap(1)[number][:3] for number in (1, 2)] == COLORS
        assert file.tags(1)["class_1"] == "first"
        tags = file.tags()
        assert (tags["SPECFAST_KIND"], tags["SPECFAST_QUANTITY"], tags["SPECFAST_MODEL"]) == (
            "classes", "class", "runs/a",
        )  # fmt: skip
        layout = file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT")
        assert layout == ("COG" if cog else None)
    seen = category_names(rasterio, out, tmp_path)
    assert all(f"<Category>{name}</Category>" in seen for name in ("no data", "first", "second"))
    with rasterio.open(tmp_path / "map_probabilities.tif") as file:
        assert file.descriptions == ("first", "second")
        assert file.dtypes == ("float32", "float32")
        assert np.isnan(file.nodata)
        assert file.tags()["SPECFAST_KIND"] == "probabilities"


def test_a_cog_has_overviews_of_classes_that_exist(rasterio, make_image, classes, tmp_path):
    image = make_image(1100, 40, transform=NORTH_UP)
    map_scene(image, classes(window=64, overlap=0.0), tmp_path / "map.tif", colors=COLORS, cog=True)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as file:
        assert file.height == 550
        assert set(np.unique(file.read(1))) == {1, 2}


def test_geotiff_without_georeference_is_silent(rasterio, make_image, bands, tmp_path, recwarn):
    image = make_image(20, 20)
    image.crs = image.transform = None
    map_scene(image, bands(), tmp_path / "map.tif")
    assert not [w for w in recwarn if "georeference" in str(w.message).lower()]
    assert open_image(tmp_path / "map.tif", out_of_range="keep").transform is None


@pytest.mark.parametrize(
    ("crs", "transform"),
    [("EPSG:32633", NORTH_UP), ("EPSG:32733", (30.0, 4.0, 400000.0, 4.0, -30.0, 5800000.0)), ("EPSG:25833", NORTH_UP),
     ("EPSG:4326", (0.001, 0.0, 13.0, 0.0, -0.001, 52.0))],
)  # fmt: skip
def test_envi_is_read_alike_by_gdal_and_by_specfast(rasterio, make_image, classes, bands, tmp_path, crs, transform):
    image = make_image(50, 37, holes=((0, 0, 9, 9),), transform=transform)
    image.crs = crs
    map_scene(image, classes(), tmp_path / "classes.img", colors=COLORS)
    first, second = image.read()[:2]
    with rasterio.open(tmp_path / "classes.img") as file:
        assert np.array_equal(file.read(1), np.where(np.isnan(first), 0, 1 + (second > first)))
        # of "Geographic Lat/Lon" GDAL makes WGS 84 with longitude first, which EPSG counts as another system
        assert f"EPSG:{file.crs.to_epsg(confidence_threshold=20)}" == crs
        np.testing.assert_allclose(tuple(file.transform)[:6], transform, rtol=1e-12, atol=1e-9)
        assert [file.colormap(1)[number][:3] for number in (1, 2)] == COLORS
        assert file.nodata == 0
    assert "<Category>second</Category>" in category_names(rasterio, tmp_path / "classes.img", tmp_path)
    result = map_scene(image, bands(), tmp_path / "values.hdr")  # either name of the pair
    assert [path.name for path in result.files] == ["values.img", "values.hdr"]
    back = open_image(tmp_path / "values.hdr")
    assert np.array_equal(back.read(), image.read()[:2], equal_nan=True)
    np.testing.assert_allclose(back.transform, transform, rtol=1e-12, atol=1e-9)
    assert back.crs is not None


def test_envi_names_with_the_header_s_own_signs(make_image, classes, tmp_path):
    predictor = classes(outputs=("corn, early {June}", "soil = bare\nground"))
    map_scene(make_image(20, 20), predictor, tmp_path / "map.img")
    header = (tmp_path / "map.hdr").read_text()
    assert "class names = {no data, corn early June, soil bare ground}" in header


def test_what_envi_cannot_say_is_said(make_image, bands, tmp_path):
    image = make_image(20, 20, transform=SHEARED)
    image.crs = "somewhere"
    result = map_scene(image, bands(), tmp_path / "map.img")
    assert result.notes == [
        "the reference system 'somewhere' is not understood and is left out of the file",
        "an ENVI header cannot say where a sheared grid lies; its transform is left out of the file",
    ]
    assert "map info" not in (tmp_path / "map.hdr").read_text()


def test_envi_without_rasterio_still_knows_utm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rasterio.enums", None)
    assert crs_module.as_wkt("EPSG:32633") is None
    assert crs_module.as_wkt('PROJCS["x"]') == 'PROJCS["x"]'
    assert "UTM, 1, 1" in crs_module.map_info(Grid(2, 2, "EPSG:32633", NORTH_UP))


@pytest.mark.parametrize(
    ("code", "unit", "gsd"),
    [(4258, "Degrees", None), (2263, "Feet", 30 * 0.3048), (25833, "Meters", 30.0), (32633, "Meters", 30.0)],
)
def test_envi_says_the_unit_of_any_system(rasterio, make_image, bands, tmp_path, code, unit, gsd):
    degrees = unit == "Degrees"
    transform = (0.001, 0.0, 13.0, 0.0, -0.001, 52.0) if degrees else NORTH_UP
    for crs in (f"EPSG:{code}", rasterio.crs.CRS.from_epsg(code).to_wkt(version="WKT1_ESRI")):
        image = make_image(20, 20, transform=transform)
        image.crs = crs
        map_scene(image, bands(), tmp_path / "map.img")
        assert f"units={unit}" in (tmp_path / "map.hdr").read_text()
        back = open_image(tmp_path / "map.hdr", wavelength=[450, 600])
        assert 80 < back.gsd < 100 if degrees else back.gsd == pytest.approx(gsd)
        assert back.transform == pytest.approx(transform)
        with rasterio.open(tmp_path / "map.img") as file:
            assert tuple(file.transform)[:6] == pytest.approx(transform)


def test_envi_says_no_unit_of_what_is_not_known(monkeypatch):
    assert "units" not in crs_module.map_info(Grid(2, 2, None, NORTH_UP))
    foot = 'PROJCS["x",GEOGCS["y",UNIT["Degree",0.017]],UNIT["Foot_US",0.304800609601219]]'
    monkeypatch.setitem(__import__("sys").modules, "rasterio.crs", None)
    assert "units" not in crs_module.map_info(Grid(2, 2, "EPSG:2263", NORTH_UP))
    assert crs_module.map_info(Grid(2, 2, foot, NORTH_UP)).endswith("units=Feet")


def test_npy_says_what_it_holds_beside_it(image, bands, tmp_path):
    map_scene(image, bands(quantity="reflectance"), tmp_path / "map.npy", tags={"scene": "a"})
    described = json.loads((tmp_path / "map.json").read_text())
    assert described == {
        "kind": "continuous", "quantity": "reflectance", "outputs": ["first", "second"], "cell_in_pixels": 1,
        "crs": "EPSG:32633", "transform": list(image.transform), "scene": "a", "nodata": "nan",
    }  # fmt: skip


@pytest.mark.parametrize("transform", [NORTH_UP, (30.0, 4.0, 400000.0, 4.0, -30.0, 5800000.0)])
def test_zarr_holds_chunks_of_all_bands_and_its_place(make_image, bands, tmp_path, transform):
    zarr = pytest.importorskip("zarr")
    image, out = make_image(1100, 37, holes=((0, 0, 9, 9),), transform=transform), tmp_path / "map.zarr"
    map_scene(image, bands(window=64), out, tags={"model": "a"})
    root = zarr.open_group(out, mode="r")
    values = root["values"]
    assert np.array_equal(values[:], image.read()[:2], equal_nan=True)
    assert values.chunks == (2, 1024, 37)
    assert np.isnan(values.fill_value)
    assert values.metadata.dimension_names == ("band", "y", "x")
    assert root.attrs["specfast_kind"] == "continuous"
    assert root.attrs["specfast_model"] == "a"
    assert root.attrs["specfast_outputs"] == ["first", "second"]
    place = root["spatial_ref"].attrs
    assert place["crs"] == "EPSG:32633"
    a, b, c, d, e, f = transform
    assert [float(value) for value in place["GeoTransform"].split()] == [c, a, b, f, d, e]
    if transform == NORTH_UP:
        assert root["x"][0] == 400015.0
        assert root["y"][-1] == 5800000.0 - 30 * 1099.5
    else:
        assert "x" not in root


def test_an_older_zarr_is_replaced_whole(make_image, bands, tmp_path):
    zarr = pytest.importorskip("zarr")
    out = tmp_path / "map.zarr"
    map_scene(make_image(40, 30, seed=1), bands(), out)
    image = make_image(20, 50, seed=2)
    map_scene(image, bands(), out)
    assert np.array_equal(zarr.open_group(out, mode="r")["values"][:], image.read()[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["map.zarr"]


def test_an_older_zarr_survives_a_kill_between_the_renames(make_image, bands, tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    image, out = make_image(20, 30, seed=1), tmp_path / "map.zarr"
    map_scene(image, bands(), out)

    def killed(*args, **options):
        raise KeyboardInterrupt

    real, folders = os.replace, []

    def replace(source, target):
        if Path(source).suffix == ".zarr":
            folders.append(source)
        return killed() if len(folders) == 2 else real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            map_scene(make_image(20, 30, seed=2), bands(), out)
    assert not out.exists()
    monkeypatch.setattr(zarr, "create_group", killed)
    with pytest.raises(KeyboardInterrupt):
        map_scene(make_image(20, 30, seed=2), bands(), out)
    assert np.array_equal(zarr.open_group(out, mode="r")["values"][:], image.read()[:2])


def test_a_folder_that_is_no_zarr_is_not_replaced(make_image, bands, tmp_path):
    (tmp_path / "map.zarr").mkdir()
    (tmp_path / "map.zarr" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"map\.zarr: a folder that is no \.zarr is in the way"):
        map_scene(make_image(20, 20), bands(), tmp_path / "map.zarr")
    assert (tmp_path / "map.zarr" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("ending", ["tif", "img", "npy"])
def test_an_older_file_is_replaced_whole(rasterio, make_image, bands, classes, tmp_path, ending):
    out = tmp_path / f"map.{ending}"
    map_scene(make_image(40, 30), classes(), out, colors=COLORS)
    image = make_image(20, 50, seed=2)
    map_scene(image, bands(), out)
    found = np.load(out) if ending == "npy" else rasterio.open(out).read()
    assert np.array_equal(found, image.read()[:2])
    assert not list(tmp_path.glob("*.aux.xml"))  # the names of the older classes


@pytest.mark.parametrize(("ending", "module", "extra"), [("tif", "rasterio", "geo"), ("zarr", "zarr", "zarr")])
def test_a_missing_library_is_named_before_anything_is_computed(
    make_image, bands, tmp_path, monkeypatch, ending, module, extra
):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    predictor = bands()
    with pytest.raises(ImportError, match=rf'pip install "specfast\[{extra}\]"'):
        map_scene(make_image(20, 20), predictor, tmp_path / f"map.{ending}")
    assert not predictor.seen
