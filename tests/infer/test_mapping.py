"""map_scene: values, nodata, bad bands, sizes, several dates, and one clear error for each mistake."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch

from specfast.data import SpectralImage
from specfast.data import open as open_image
from specfast.errors import DataError
from specfast.infer import Predictor, map_scene, mapping
from specfast.infer import raster as raster_module
from specfast.infer.reading import check_pair

HOLES = ((0, 0, 9, 9), (20, 30, 30, 4))


def write_envi(path):
    """A scene of 6 bands of 20 x 10 pixels that says all of itself, and its header beside it."""
    path.write_bytes(np.random.default_rng(0).random((6, 20, 10), dtype=np.float32).tobytes())
    path.with_suffix(".hdr").write_text(
        "ENVI\nsamples = 10\nlines = 20\nbands = 6\ndata type = 4\ninterleave = bsq\nbyte order = 0\n"
        "wavelength units = Nanometers\nwavelength = {450, 600, 850, 1250, 1650, 2200}\n"
    )


def truth(image, bands=2):
    return image.read()[:bands]


@pytest.mark.parametrize("size", [(50, 37), (7, 5), (16, 16), (17, 200), (200, 17), (1, 1)], ids=str)
def test_a_map_of_any_size_holds_what_the_predictor_gave(make_image, bands, tmp_path, size):
    image = make_image(*size)
    result = map_scene(image, bands(), tmp_path / "map.npy")
    assert np.array_equal(np.load(tmp_path / "map.npy"), truth(image))
    assert result.cells == size[0] * size[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.npy"]


@pytest.mark.parametrize(
    "options", [{"window": 8}, {"window": 50}, {"overlap": 0.0}, {"overlap": 0.7}, {"batch_size": 1}], ids=str
)
def test_windows_do_not_show(make_image, bands, tmp_path, options):
    image = make_image(50, 37, holes=HOLES)
    map_scene(image, bands(), tmp_path / "map.npy", **options)
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), truth(image))


def test_pixels_without_data_get_the_nodata_value(make_image, bands, classes, tmp_path):
    image = make_image(50, 37, holes=HOLES)
    valid = np.isfinite(truth(image)).all(axis=0)
    result = map_scene(image, classes(), tmp_path / "classes.npy", probabilities=True)
    found = np.load(tmp_path / "classes.npy")
    first, second = truth(image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.where(valid, 1 + (second > first), 0))
    shares = np.load(tmp_path / "classes_probabilities.npy")
    assert np.isnan(shares[:, ~valid]).all()
    np.testing.assert_allclose(shares[:, valid].sum(axis=0), 1, rtol=1e-6)
    assert result.cells == valid.sum()
    assert result.class_cells == {"first": (found == 1).sum(), "second": (found == 2).sum()}
    map_scene(image, bands(), tmp_path / "continuous.npy")
    assert np.array_equal(np.isnan(np.load(tmp_path / "continuous.npy")), np.broadcast_to(~valid, (2, 50, 37)))


def test_windows_without_data_are_not_computed(make_image, bands, tmp_path):
    image = make_image(64, 64, holes=((0, 0, 64, 40),))
    predictor = bands(overlap=0.0)
    map_scene(image, predictor, tmp_path / "map.npy")
    assert predictor.seen == 4 * 2


def test_bad_bands_are_left_out(make_image, bands, tmp_path):
    image = make_image(20, 20, good_bands=[0, 1, 1, 1, 1, 1])
    map_scene(image, bands(), tmp_path / "map.npy")
    assert np.array_equal(np.load(tmp_path / "map.npy"), image.read()[1:3])


def test_stored_nodata_and_scale_are_respected(bands, tmp_path):
    stored = np.random.default_rng(0).integers(1, 9000, (6, 30, 20)).astype(np.int16)
    stored[:, 4, 5] = -9999
    image = SpectralImage.from_array(
        stored, wavelength=np.linspace(450, 2300, 6), fwhm=np.full(6, 10.0), gsd=30, sensor="enmap", level="L2",
        nodata=-9999, scale=1e4,
    )  # fmt: skip
    map_scene(image, bands(), tmp_path / "map.npy")
    found = np.load(tmp_path / "map.npy")
    assert np.isnan(found[:, 4, 5]).all()
    assert np.isfinite(found).sum() == 2 * (30 * 20 - 1)
    assert found[0, 0, 0] == np.float32(stored[0, 0, 0] / 1e4)


class Patches(Predictor):
    """The mean of each patch of 4 x 4 pixels, as an encoder would give one vector a patch."""

    outputs, kind = ("mean",), "embedding"
    window, align, stride, overlap = 16, 4, 4, 0.4

    def __call__(self, samples):
        maps = []
        for sample in samples:
            height, width = sample.image.shape[1:]
            padded = torch.nn.functional.pad(sample.image[:1], (0, -width % 4, 0, -height % 4))
            maps.append(torch.nn.functional.avg_pool2d(padded, 4))
        return torch.stack(maps)


def test_a_map_of_patches_lies_on_the_patch_grid(make_image, tmp_path):
    image = make_image(50, 37, holes=((0, 0, 8, 8), (8, 8, 1, 1)))
    result = map_scene(image, Patches(), tmp_path / "map.npy")
    found = np.load(tmp_path / "map.npy")
    assert found.shape == (1, 13, 10)
    assert np.isnan(found[0, :2, :2]).all()  # no pixel has data
    assert np.isfinite(found).sum() == 130 - 4  # a patch counts if any pixel has data
    np.testing.assert_allclose(found[0, 5, 3], image.read((20, 12, 4, 4))[0].mean(), rtol=1e-6)
    a, b, c, d, e, f = image.transform
    assert result.grid.transform == (4 * a, 4 * b, c, 4 * d, 4 * e, f)
    assert json.loads((tmp_path / "map.json").read_text())["cell_in_pixels"] == 4


class Difference(Predictor):
    """What two dates differ by in the first band."""

    outputs, dates = ("difference",), 2
    window, overlap = 16, 0.25

    def __call__(self, pairs):
        return torch.stack([after.image[:1] - before.image[:1] for before, after in pairs])


def test_two_dates_go_through_together(make_image, tmp_path):
    before, after = make_image(40, 30, seed=1, holes=((0, 0, 5, 5),)), make_image(40, 30, seed=2, holes=((8, 8, 2, 2),))
    map_scene((before, after), Difference(), tmp_path / "map.npy")
    expected = truth(after, 1) - truth(before, 1)
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 41}, "the two dates have 40 x 30 and 41 x 30 pixels"),
        ({"crs": "EPSG:32632"}, "different reference systems, EPSG:32633 and EPSG:32632"),
        ({"transform": (30.0, 4.0, 400015.0, 4.0, -30.0, 5800002.0)}, "grids lie up to 0.5 pixels apart"),
    ],
    ids=str,
)
def test_two_dates_must_fit(make_image, tmp_path, change, message):
    before = make_image(40, 30)
    after = make_image(change.get("height", 40), 30)
    after.crs = change.get("crs", after.crs)
    after.transform = change.get("transform", after.transform)
    with pytest.raises(DataError, match=message):
        map_scene((before, after), Difference(), tmp_path / "map.npy")


def test_two_dates_of_one_system_may_name_it_differently(make_image):
    crs = pytest.importorskip("rasterio.crs").CRS.from_epsg(32633)
    before, after = make_image(4, 3), make_image(4, 3)
    for text in (crs.to_wkt(), crs.to_wkt(version="WKT1_ESRI"), "epsg:32633"):
        after.crs = text
        check_pair(before, after)
    after.crs = crs.from_epsg(32632).to_wkt(version="WKT1_ESRI")
    with pytest.raises(DataError, match="different reference systems"):
        check_pair(before, after)


def test_two_dates_without_rasterio_differ_by_codes_only(make_image, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio.crs", None)
    before, after = make_image(4, 3), make_image(4, 3)
    after.crs = 'PROJCS["WGS_1984_UTM_Zone_33N"]'
    check_pair(before, after)
    after.crs = "EPSG:32632"
    with pytest.raises(DataError, match="different reference systems"):
        check_pair(before, after)


@pytest.mark.parametrize("given", ["scene.dat", "scene.hdr"])
@pytest.mark.parametrize("out", ["scene.dat", "scene.img", "scene.hdr", "sub/../scene.bil"])
def test_a_scene_and_its_header_are_never_written_over(bands, tmp_path, given, out):
    write_envi(tmp_path / "scene.dat")
    (tmp_path / "sub").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("scene.*")}
    predictor = bands()
    with pytest.raises(DataError, match="belongs to a scene that is read; choose another --out"):
        map_scene(open_image(tmp_path / given), predictor, tmp_path / out)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("scene.*")} == before
    assert not predictor.seen


def test_probabilities_do_not_take_the_place_of_a_scene_either(classes, tmp_path):
    write_envi(tmp_path / "map_probabilities.img")
    with pytest.raises(DataError, match=r"map_probabilities\.img: belongs to a scene that is read"):
        map_scene(open_image(tmp_path / "map_probabilities.img"), classes(), tmp_path / "map.img", probabilities=True)


def test_the_header_of_a_file_of_another_ending_is_kept(make_image, bands, tmp_path):
    write_envi(tmp_path / "line.dat")
    for out in ("line.img", "line.hdr"):
        with pytest.raises(DataError, match=r"line\.hdr: may be the header of another file, since line\.img is not"):
            map_scene(make_image(20, 20), bands(), tmp_path / out)
    assert open_image(tmp_path / "line.dat").shape == (6, 20, 10)


def test_a_preview_needs_no_open_file_a_row(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/dev/fd"))) + 16
    values = np.arange(most + 200, dtype=np.float32).repeat(3)
    values.tofile(tmp_path / "rows")
    grid = raster_module.Grid(most + 200, 3)
    rows = raster_module.Raster(tmp_path / "rows", raster_module.Layer("continuous", ("a",)), grid)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        found = raster_module.preview(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert np.array_equal(found.ravel(), values)


def test_a_preview_is_every_nth_cell(make_image, bands, tmp_path, monkeypatch):
    image = make_image(50, 37)
    monkeypatch.setattr(mapping, "preview", lambda raster: raster_module.preview(raster, most_pixels=200))
    result = map_scene(image, bands(), tmp_path / "map.npy", with_preview=True)
    assert np.array_equal(result.preview, truth(image)[:, ::4, ::4])


class Broken(Predictor):
    outputs, kind = ("a", "b"), "classes"
    window = 16

    def __init__(self, returned):
        self.returned = returned

    def __call__(self, samples):
        return self.returned(len(samples), *samples[0].image.shape[1:])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda n, h, w: torch.zeros(n, 3, h, w), r"expected maps \[1, 2, 10, 10\], got \[1, 3, 10, 10\]"),
        (lambda n, h, w: torch.zeros(n, 2, h, w - 1), r"expected maps \[1, 2, 10, 10\], got \[1, 2, 10, 9\]"),
        (lambda n, h, w: torch.full((n, 2, h, w), torch.nan), "NaN or infinity in 100 valid pixels of rows 0 to 9"),
    ],
)
def test_what_a_predictor_may_not_return(make_image, tmp_path, returned, message):
    with pytest.raises(ValueError, match=message):
        map_scene(make_image(10, 10), Broken(returned), tmp_path / "map.npy")
    assert not (tmp_path / "map.npy").exists()


def test_numbers_that_are_none_are_no_data_and_said(make_image, bands, tmp_path):
    class Holed(bands):
        def __call__(self, samples):
            values = super().__call__(samples)
            values[:, 1, 0, 0] = torch.inf
            return values

    result = map_scene(make_image(16, 16), Holed(overlap=0.0), tmp_path / "map.npy")
    assert result.notes == ["1 valid cells got no finite number and hold no data"]
    assert np.isnan(np.load(tmp_path / "map.npy")[:, 0, 0]).all()


def test_mistakes_are_told_before_anything_is_computed(make_image, bands, classes, tmp_path):
    image, predictor = make_image(20, 20), bands()
    with pytest.raises(DataError, match=r"map\.jpg: its ending tells no format that can be written; expected one of"):
        map_scene(image, predictor, tmp_path / "map.jpg")
    with pytest.raises(DataError, match="a COG is a GeoTIFF"):
        map_scene(image, predictor, tmp_path / "map.npy", cog=True)
    with pytest.raises(ValueError, match="probabilities: only for predictors of classes"):
        map_scene(image, predictor, tmp_path / "map.npy", probabilities=True)
    with pytest.raises(ValueError, match="image: expected 2 for Difference, got 1"):
        map_scene(image, Difference(), tmp_path / "map.npy")
    with pytest.raises(ValueError, match="batch_size: expected at least 1 window, got 0"):
        map_scene(image, predictor, tmp_path / "map.npy", batch_size=0)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(DataError, match=r"folder\.npy: a folder that is no \.npy is in the way"):
        map_scene(image, predictor, tmp_path / "folder.npy")
    assert not predictor.seen
    assert not list(tmp_path.glob("*.partial"))


def test_a_scene_without_any_data_is_refused(make_image, bands, tmp_path):
    image = make_image(20, 20, holes=((0, 0, 20, 20),))
    with pytest.raises(DataError, match="no pixel of the scene is valid"):
        map_scene(image, bands(), tmp_path / "map.npy")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_said_at_once(make_image, bands, tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="free; free some, or choose another --out"):
        map_scene(make_image(40, 40), bands(), tmp_path / "map.npy")
    # the rows take 12800 bytes; as .npy they are copied, for ENVI they are not
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    with pytest.raises(DataError, match="40 x 40 cells still take"):
        map_scene(make_image(40, 40), bands(), tmp_path / "map.npy")
    map_scene(make_image(40, 40), bands(), tmp_path / "map.img")
