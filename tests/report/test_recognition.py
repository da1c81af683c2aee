"""What a file is: by what it says, by its content; and one clear error where it is nothing that can be shown."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest

from specfast.data import SpectralImage
from specfast.errors import DataError
from specfast.report.pages.recognition import recognize
from specfast.report.sources import open_source, step_for, strips, thinned
from tests.report.conftest import BANDS, HEIGHT, WIDTH, score_table, write_envi


def geotiff(path, values, *, names=(), tags=None, table=None, classes=None, **profile):
    rasterio = pytest.importorskip("rasterio")
    bands, height, width = values.shape
    profile = {"transform": rasterio.Affine(30, 0, 500_000, 0, -30, 5_800_000), "crs": "EPSG:32633"} | profile
    with rasterio.open(path, "w", "GTiff", width, height, bands, dtype=values.dtype, **profile) as file:
        file.write(values)
        file.update_tags(**(tags or {}))
        if names:
            file.descriptions = names
        if table:
            file.write_colormap(1, table)
        if classes:
            file.update_tags(1, **{f"class_{number}": name for number, name in classes.items()})
    return path


def kind_of(path, **options):
    return recognize(path, **options).kind


def test_scene_is_told_by_its_wavelengths(scene):
    found = recognize(scene)
    assert (found.kind, found.why) == ("scene", "its bands have wavelengths")
    assert found.source.image.shape == (BANDS, HEIGHT, WIDTH)


def test_envi_classification_has_names_and_colors(class_map):
    found = recognize(class_map)
    assert found.kind == "classes"
    assert found.source.classes[3] == "wood"
    np.testing.assert_allclose(found.source.colors[1], (200 / 255, 100 / 255, 0))


def test_geotiff_class_map_is_told_by_its_color_table(tmp_path):
    values = np.zeros((1, 5, 6), np.uint8)
    values[0, 2:] = 2
    path = geotiff(
        tmp_path / "map.tif", values, table={1: (9, 9, 9), 2: (255, 0, 0)}, classes={1: "a", 2: "b"}, nodata=0
    )
    found = recognize(path)
    assert found.kind == "classes"
    assert found.source.classes == {1: "a", 2: "b"}
    assert found.source.colors == {1: (9 / 255,) * 3, 2: (1.0, 0.0, 0.0)}
    assert found.source.image.gsd == 30


def test_category_names_beside_a_geotiff_are_read(tmp_path):
    path = geotiff(tmp_path / "map.tif", np.ones((1, 3, 3), np.uint8))
    beside = "<PAMDataset><PAMRasterBand band='1'><CategoryNames><Category>none</Category><Category>soil</Category>"
    aux = tmp_path / "map.tif.aux.xml"
    aux.write_text(beside + "</CategoryNames></PAMRasterBand></PAMDataset>")
    assert recognize(path).source.classes == {0: "none", 1: "soil"}
    aux.write_text(beside)
    with pytest.raises(DataError, match="not well-formed"):
        recognize(path)


@pytest.mark.parametrize(
    ("said", "kind"),
    [("classes", "classes"), ("probabilities", "continuous"), ("continuous", "continuous"), ("embedding", "embedding")],
)
def test_what_the_writer_says_counts_first(tmp_path, said, kind):
    values = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    path = geotiff(
        tmp_path / "x.tif", values, tags={"SPECFAST_KIND": said, "SPECFAST_QUANTITY": "q"}, names=list("abcde")
    )
    found = recognize(path)
    assert (found.kind, found.source.quantity, found.source.names) == (kind, "q", tuple("abcde"))
    envi = write_envi(tmp_path / "y", values, **{"specfast kind": said, "specfast quantity": "q"})
    assert recognize(envi).kind == kind
    np.save(tmp_path / "z.npy", values)
    (tmp_path / "z.json").write_text(
        json.dumps({"kind": said, "quantity": "q", "outputs": list("abcde"), "nodata": "nan"})
    )
    found = recognize(tmp_path / "z.npy")
    assert (found.kind, found.source.quantity) == (kind, "q")
    assert found.source.image.shape == (5, 4, 4)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.arange(12).reshape(3, 4), "classes"),
        (np.linspace(0, 1, 12).reshape(3, 4), "continuous"),
        (np.full((3, 4), 2.0, np.float32), "classes"),
        (np.arange(1200).reshape(30, 40), "continuous"),
        (np.arange(12).reshape(3, 4) - 3, "continuous"),
    ],
)
def test_maps_without_a_word_are_told_by_their_numbers(tmp_path, array, kind):
    np.save(tmp_path / "x.npy", array)
    assert kind_of(tmp_path / "x.npy") == kind


def test_stacks_without_wavelengths_are_told_by_their_signs(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(6, 7, 20)))
    assert kind_of(tmp_path / "x.npy") == "embedding"
    np.save(tmp_path / "x.npy", rng.random((6, 7, 20)))
    assert kind_of(tmp_path / "x.npy") == "scene"
    np.save(tmp_path / "x.npy", rng.random((6, 7, 2)))
    assert kind_of(tmp_path / "x.npy") == "continuous"


def test_kind_asked_for_tells_which_axis_holds_the_channels(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 6, 7)))
    assert recognize(tmp_path / "x.npy", "embedding").source.image.shape == (20, 6, 7)
    assert recognize(tmp_path / "x.npy", "scene").source.image.shape == (7, 20, 6)


def test_what_changes_a_scene_s_numbers_leaves_maps_alone(scene, class_map, tmp_path):
    whole = recognize(scene).source.image.read()
    told = recognize(scene, scale=10000, offset=1).source.image.read()
    np.testing.assert_allclose(told, whole / 10000 + 1, rtol=1e-6)
    values = open_source(class_map).image.read()
    for options in ({"scale": 10000}, {"offset": 1}, {"nodata": 1}, {"kind": "classes", "scale": 10000}):
        found = recognize(class_map, **options)
        assert found.kind == "classes"
        np.testing.assert_array_equal(found.source.image.read(), values)
    untold = write_envi(tmp_path / "untold", values.astype(np.uint8))
    for options in ({"scale": 10000}, {"sensor": "indian_pines"}):  # whose integers have a scale of their own
        found = recognize(untold, **options)
        assert found.kind == "classes"
        np.testing.assert_array_equal(found.source.image.read(), values)


def test_a_geotiff_s_scores_keep_their_values_beside_a_scaled_scene(tmp_path):
    path = geotiff(tmp_path / "p.tif", np.full((1, 4, 5), 0.8, np.float32), tags={"SPECFAST_KIND": "continuous"})
    found = recognize(path, scale=10000, offset=-0.1, nodata=0.8)
    assert found.kind == "continuous"
    np.testing.assert_array_equal(found.source.image.read(), np.full((1, 4, 5), 0.8, np.float32))


def test_a_stack_is_told_by_its_numbers_without_the_fill_that_was_named(tmp_path):
    values = np.random.default_rng(0).random((6, 7, 20))
    values[:3] = -9999
    np.save(tmp_path / "x.npy", values)
    assert kind_of(tmp_path / "x.npy") == "embedding"
    found = recognize(tmp_path / "x.npy", nodata=-9999)
    assert found.kind == "scene"
    assert np.isnan(found.source.image.read()).mean() == 0.5


def test_mat_file_with_one_map(tmp_path):
    import scipy.io

    scipy.io.savemat(tmp_path / "gt.mat", {"gt": np.ones((4, 5), np.uint8)})
    assert kind_of(tmp_path / "gt.mat") == "classes"
    scipy.io.savemat(tmp_path / "two.mat", {"a": np.ones((4, 5)), "b": np.zeros((4, 5))})
    with pytest.raises(DataError, match="expected one map, found a, b; name one"):
        recognize(tmp_path / "two.mat")
    assert recognize(tmp_path / "two.mat", variable="b").source.image.read().max() == 0


def test_folders_and_tables(finetune_run, pretrain_run, tmp_path):
    found = recognize(finetune_run)
    assert (found.kind, found.stem) == ("finetune", "segment")
    assert kind_of(pretrain_run) == "pretrain"
    assert kind_of(pretrain_run / "log.csv") == "losses"
    assert kind_of(finetune_run / "segment.json") == "table"
    (finetune_run / "segment.json").rename(finetune_run / "probe.json")
    assert kind_of(finetune_run) == "probe"
    (finetune_run / "probe.json").unlink()
    assert kind_of(finetune_run) == "maps"
    (finetune_run / "model").mkdir()
    assert recognize(finetune_run).stem == "", "trained on all labels, so there is no table"
    with pytest.raises(DataError, match="is a saved model"):
        recognize(pretrain_run / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folder that can be shown"):
        recognize(tmp_path / "empty")


def test_confusion_matrices(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"confusion": [[3, 1], [0, 2]], "names": ["a", "b"]}))
    matrix, names = recognize(tmp_path / "c.json").content
    assert names == ["a", "b"]
    assert matrix.tolist() == [[3, 1], [0, 2]]
    (tmp_path / "c.csv").write_text(",a,b\na,3,1\nb,0,2\n")
    again, names = recognize(tmp_path / "c.csv").content
    assert names == ["a", "b"]
    np.testing.assert_array_equal(matrix, again)
    np.save(tmp_path / "c.npy", np.eye(3, dtype=int))
    assert recognize(tmp_path / "c.npy", "confusion").content[1] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{", "is not JSON"),
        ("x.json", '{"a": 1}', "expected the table of a probe"),
        ("x.json", "[[1, 2], [3]]", "matrix of numbers"),
        ("x.json", "[[1, -2], [3, 4]]", "square matrix of counts"),
        ("x.json", '{"confusion": [[1]], "names": ["a", "b"]}', "expected 1 class names"),
        ("x.csv", "a,b\n1,2,3\n", "expected a log"),
        ("x.csv", "", "expected a log"),
        ("x.npy", "no array", "cannot be read as a NumPy array"),
        ("x.txt", "hello", "not one of the formats"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        recognize(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_missing_files_and_wrong_kinds(tmp_path, scene):
    with pytest.raises(FileNotFoundError, match="no such file"):
        recognize(tmp_path / "nowhere.tif")
    with pytest.raises(ValueError, match="kind: expected one of scene, classes"):
        recognize(scene, "picture")
    with pytest.raises(DataError, match="cannot be shown as table"):
        recognize(scene, "table")
    (tmp_path / "t.json").write_text(json.dumps(score_table()))
    with pytest.raises(DataError, match="confusion matrix"):
        recognize(tmp_path / "t.json", "confusion")


def test_strips_are_the_thinned_whole_whatever_their_height(scene, monkeypatch):
    image = open_source(scene).image
    whole = image.read()
    for rows, columns in ((1, 1), (2, 2), (5, 3)):
        monkeypatch.setattr("specfast.report.sources._BUDGET", 1)
        parts = list(strips(image, step=(rows, columns)))
        assert len(parts) == -(-HEIGHT // rows), "one strip a step where memory is short"
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[:, ::rows, ::columns])
        monkeypatch.setattr("specfast.report.sources._BUDGET", 1 << 20)
        np.testing.assert_array_equal(thinned(image, step=(rows, columns)), whole[:, ::rows, ::columns])
    part = thinned(image, bands=[4, 2], window=(3, 5, 7, 9), step=(2, 3))
    np.testing.assert_array_equal(part, whole[[4, 2], 3:10:2, 5:14:3])


def test_thinning_holds_a_strip_of_the_file_and_not_all_of_it(monkeypatch):
    monkeypatch.setattr("specfast.report.sources._BUDGET", 1 << 20)
    image = SpectralImage.from_array(np.ones((40, 512, 400), np.float32))  # 33 MB
    tracemalloc.start()
    try:
        found = thinned(image, step=(4, 4))  # 2 MB
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (40, 128, 100)
    assert peak < 10e6, "twice what is returned, and a strip with its masks"


def test_rows_between_are_not_read_where_one_step_is_too_much(monkeypatch):
    image = SpectralImage.from_array(np.arange(2 * 20 * 4, dtype=np.float32).reshape(2, 20, 4))
    windows, read = [], image.read
    monkeypatch.setattr(image, "read", lambda window, bands: windows.append(window) or read(window, bands))
    monkeypatch.setattr("specfast.report.sources._BUDGET", 4 * 2 * 4 * 5)  # five rows
    np.testing.assert_array_equal(thinned(image, step=(6, 1)), read()[:, ::6])
    assert windows == [(row, 0, 1, 4) for row in (0, 6, 12, 18)]


def test_steps_are_equal_but_for_flightlines():
    assert [step_for(shape, 100) for shape in ((100, 30), (101, 30), (50, 300))] == [(1, 1), (2, 2), (3, 3)]
    assert [step_for(shape, 100) for shape in ((1000, 50), (30, 1000), (5000, 300))] == [(10, 1), (1, 10), (50, 3)]


def test_zarr_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "e.zarr").mkdir()
    (tmp_path / "e.zarr" / "zarr.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"specfast\[zarr\]"):
        recognize(tmp_path / "e.zarr")


def test_zarr_arrays_are_embeddings(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.open(str(tmp_path / "e.zarr"), mode="w", shape=(5, 6, 7), chunks=(5, 3, 3), dtype="float32")
    values = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    array[:] = values
    array.attrs.update({"transform": [8, 0, 1, 0, -8, 2], "crs": "EPSG:32633"})
    found = recognize(tmp_path / "e.zarr")
    assert found.kind == "embedding"
    assert found.source.image.transform == (8, 0, 1, 0, -8, 2)
    np.testing.assert_array_equal(found.source.image.read(), values)


def test_zarr_groups_say_what_their_array_is(tmp_path):
    zarr = pytest.importorskip("zarr")
    said = {"kind": "continuous", "quantity": "share", "outputs": ["soil", "water"], "transform": [30, 0, 1, 0, -30, 2]}
    group = zarr.open_group(
        str(tmp_path / "m.zarr"), mode="w", attributes={f"specfast_{k}": v for k, v in said.items()}
    )
    group.create_array("values", shape=(2, 6, 7), dtype="float32")[:] = 0.5
    group.create_array("x", shape=(7,), dtype="float64")
    found = recognize(tmp_path / "m.zarr")
    assert (found.kind, found.source.quantity, found.source.names) == ("continuous", "share", ("soil", "water"))
    assert found.source.image.transform == (30, 0, 1, 0, -30, 2)
