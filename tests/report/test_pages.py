"""Pictures and pages of rasters: every number shown is that of the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from specfast.errors import DataError
from specfast.report import pages
from specfast.report.sources import step_for
from specfast.report.style import MASKED, UNLABELED
from tests.report.conftest import HEIGHT, WIDTH, first_figure, images, tables, write_envi


def test_scene_shows_asked_pixels_shades_bad_bands_and_names_the_sensor(scene):
    shown = pages.show(scene, spectra=[(2, 3), (4, 12)])
    left, right = first_figure(shown).axes
    np.testing.assert_allclose(left.images[0].get_array()[0, 0], to_rgb(MASKED), atol=1e-6)
    assert right.get_title("left") == "Handheld"
    assert right.get_ylabel() == "reflectance"
    good = np.linspace(450, 900, 30)
    assert any(patch.get_x() < good[3] < patch.get_x() + patch.get_width() for patch in right.patches)
    drawn = np.concatenate([line.get_ydata() for line in right.lines if line.get_color() == right.lines[0].get_color()])
    from specfast.data import open as open_image

    expected = open_image(scene).read((2, 3, 1, 1))[:, 0, 0]
    np.testing.assert_allclose(np.sort(drawn), np.sort(np.delete(expected, 3)), rtol=1e-6)
    assert shown.summary["spectra"] == [[2, 3], [4, 12]]
    assert shown.summary["good_bands"] == 29
    text = shown.report().html()
    assert "bad bands" in text
    assert "What the file did not say" in text


def test_scene_chooses_pixels_of_both_materials(scene):
    columns = [column for _, column in pages.show(scene).summary["spectra"]]
    assert min(columns) < WIDTH // 2 <= max(columns)


def test_two_scenes_share_pixels_and_stretch(scene, tmp_path):
    darker = write_envi(
        tmp_path / "later",
        np.fromfile(scene.with_suffix(".img"), np.float32).reshape(-1, HEIGHT, WIDTH) * 0.5,
        **dict(
            line.split(" = ")
            for line in scene.read_text().splitlines()
            if line.startswith(("wavelength", "sensor", "refl"))
        ),
    )
    shown = pages.show(scene, against=[darker], spectra=[(5, 5)])
    axes = first_figure(shown).axes
    assert len(axes) == 4
    before, after = (ax.images[0].get_array() for ax in axes[::2])
    assert after[2:].mean() < before[2:].mean() - 0.1, "one stretch for both, so the darker one is dark"


def test_scene_options_that_cannot_be_met_are_named(scene, class_map):
    with pytest.raises(DataError, match="has no band 30; expected 0 to 29"):
        pages.show(scene, bands=[30, 1, 2])
    with pytest.raises(DataError, match="bands: expected three numbers"):
        pages.show(scene, bands=[1, 2])
    with pytest.raises(DataError, match="shows no pixel 12,0; expected row 0 to 11"):
        pages.show(scene, spectra=[(12, 0)])
    with pytest.raises(DataError, match="at most 6 pixels, got 7"):
        pages.show(scene, spectra=[(0, 1)] * 7)
    with pytest.raises(DataError, match="does not lie inside its 12 x 16 pixels"):
        pages.show(scene, window=(0, 0, 13, 2))
    with pytest.raises(DataError, match="stretch: expected two ascending percentiles"):
        pages.show(scene, stretch=(98, 2))
    with pytest.raises(DataError, match="is no scene; give the map first"):
        pages.show(scene, against=[class_map])
    with pytest.raises(DataError, match=r"spectra: goes with scene, but .* is of kind classes"):
        pages.show(class_map, spectra=[(0, 0)])


def test_large_scenes_say_what_the_picture_leaves_out(scene, monkeypatch):
    monkeypatch.setattr(step_for, "__defaults__", (8,))
    shown = pages.show(scene)
    assert first_figure(shown).axes[0].images[0].get_array().shape[:2] == (6, 8)
    assert "Shown is one of 2 rows and columns." in shown.sections[0].pictures[0].caption


def test_window_shows_that_part_in_the_scenes_numbers(scene):
    shown = pages.show(scene, window=(2, 4, 5, 6))
    left = first_figure(shown).axes[0]
    assert left.images[0].get_array().shape[:2] == (5, 6)
    assert (left.get_xlim(), left.get_ylim()) == ((3.5, 9.5), (6.5, 1.5))
    assert all(2 <= row < 7 and 4 <= column < 10 for row, column in shown.summary["spectra"])


def test_class_map_has_its_own_colors_names_and_counts(class_map):
    shown = pages.show(class_map)
    (picture,) = images(shown)
    np.testing.assert_allclose(picture[0, 0], to_rgb(UNLABELED))
    np.testing.assert_allclose(picture[1, 0], (200 / 255, 100 / 255, 0))
    np.testing.assert_allclose(picture[1, -1], (0, 128 / 255, 0))
    labels = [text.get_text() for text in first_figure(shown).legends[0].get_texts()]
    half = (HEIGHT - 1) * WIDTH // 2
    assert labels == [f"soil ({half})", f"wood ({half})"]
    assert shown.summary["pixels"] == {"1": half, "3": half}
    (table,) = tables(shown).values()
    assert table.rows == [["soil", f"{half}", "50.0"], ["wood", f"{half}", "50.0"]]


def test_two_class_maps_are_compared_pixel_by_pixel(class_map, tmp_path):
    other = np.ones((HEIGHT, WIDTH), np.int32)
    other[:, WIDTH // 2 :] = 3
    other[5:7] = 2
    np.save(tmp_path / "truth.npy", other)
    shown = pages.show(class_map, against=[tmp_path / "truth.npy"])
    judged = (HEIGHT - 1) * WIDTH
    assert shown.summary["agreement"] == pytest.approx(1 - 2 * WIDTH / judged)
    figure = shown.sections[1].pictures[0].figure
    share = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(share, [[100, 0, 0], [50, 0, 50], [0, 0, 100]])
    assert len(images(shown)) == 2


def test_class_map_beside_its_scene(class_map, scene):
    assert len(images(pages.show(class_map, against=[scene]))) == 2


def test_only_the_commonest_of_many_classes_are_listed(tmp_path):
    classes = np.repeat(np.arange(1, 51), np.arange(1, 51))
    np.save(tmp_path / "many.npy", classes.reshape(25, -1))
    shown = pages.show(tmp_path / "many.npy")
    labels = [text.get_text() for text in first_figure(shown).legends[0].get_texts()]
    assert labels == [f"class {n} ({n})" for n in range(11, 51)]
    assert "40 most frequent of 50 classes" in shown.sections[0].pictures[0].caption


def test_class_maps_that_are_none_or_do_not_fit(class_map, tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros((4, 4), int))
    with pytest.raises(DataError, match="no pixel has a class"):
        pages.show(tmp_path / "empty.npy")
    np.save(tmp_path / "small.npy", np.ones((4, 4), int))
    with pytest.raises(DataError, match="has 4 x 4 pixels; expected 12 x 16"):
        pages.show(class_map, against=[tmp_path / "small.npy"])
    np.save(tmp_path / "half.npy", np.full((HEIGHT, WIDTH), 0.5))
    with pytest.raises(DataError, match="is of kind continuous; beside a class map"):
        pages.show(class_map, against=[tmp_path / "half.npy"])
    with pytest.raises(DataError, match="got fractions"):
        pages.show(tmp_path / "half.npy", kind="classes")


@pytest.fixture
def change_map(tmp_path):
    """Two bands as ``specfast change`` writes them."""
    rng = np.random.default_rng(0)
    values = rng.random((2, HEIGHT, WIDTH)).astype(np.float32)
    values[:, 0, 0] = np.nan
    np.save(tmp_path / "change.npy", values)
    said = {"kind": "continuous", "outputs": ["change probability", "uncertainty"], "nodata": "nan"}
    said["quantity"] = "change probability"
    (tmp_path / "change.json").write_text(json.dumps(said))
    return tmp_path / "change.npy"


def test_maps_of_numbers_have_their_names_colormaps_and_numbers(change_map):
    shown = pages.show(change_map)
    values = np.load(change_map)
    assert list(shown.summary["maps"]) == ["change probability", "uncertainty"]
    for number, name in enumerate(shown.summary["maps"]):
        known = values[number][np.isfinite(values[number])]
        assert shown.summary["maps"][name]["median"] == pytest.approx(np.median(known), rel=1e-6)
        assert shown.summary["maps"][name]["valid"] == pytest.approx(1 - 1 / (HEIGHT * WIDTH))
    bars = [ax for ax in first_figure(shown).axes if ax.get_label() == "<colorbar>"]
    assert [bar.get_ylabel() for bar in bars] == ["change probability", "uncertainty"]
    first, second = images(shown)[:2]
    assert not np.allclose(first, second)
    assert list(pages.show(change_map, bands=[1]).summary["maps"]) == ["uncertainty"]
    with pytest.raises(DataError, match="has no band 2"):
        pages.show(change_map, bands=[2])


def test_change_stands_between_its_two_scenes(change_map, scene):
    titles = [ax.get_title("left") for ax in first_figure(pages.show(change_map, against=[scene, scene])).axes]
    assert titles[:4] == ["before", "after", "change", "uncertainty"]
    beside_one = first_figure(pages.show(change_map, against=[scene])).axes
    assert [ax.get_title("left") for ax in beside_one][:3] == ["field", "change probability", "uncertainty"]
    truth = np.zeros((HEIGHT, WIDTH), int)
    truth[3:6, 3:6] = 1
    np.save(scene.parent / "truth.npy", truth)
    figure = first_figure(pages.show(change_map, against=[scene, scene, scene.parent / "truth.npy"]))
    found, real = np.load(change_map)[0] >= 0.5, truth > 0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"change missed ({np.sum(real & ~found)})" in labels
    assert f"false alarm ({np.sum(found & ~real)})" in labels
    with pytest.raises(DataError, match="got scene, scene, scene"):
        pages.show(change_map, against=[scene] * 3)


def test_anomaly_scores_stand_beside_their_distribution_and_known_targets(tmp_path):
    score = np.random.default_rng(0).chisquare(10, (HEIGHT, WIDTH))
    np.save(tmp_path / "rx.npy", score)
    (tmp_path / "rx.json").write_text(json.dumps({"kind": "continuous", "outputs": ["anomaly score"]}))
    figure = first_figure(pages.show(tmp_path / "rx.npy"))
    assert [ax.get_title("left") for ax in figure.axes][:2] == ["anomaly score", "Distribution"]
    np.save(tmp_path / "targets.npy", (score > 20).astype(int))
    right = first_figure(pages.show(tmp_path / "rx.npy", against=[tmp_path / "targets.npy"])).axes[1]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["background", "known targets"]


def test_two_maps_of_numbers_share_a_scale_and_show_their_difference(tmp_path):
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, HEIGHT, WIDTH))
    np.save(tmp_path / "a.npy", ours)
    np.save(tmp_path / "b.npy", theirs)
    figure = first_figure(pages.show(tmp_path / "a.npy", against=[tmp_path / "b.npy"]))
    assert [ax.get_title("left") for ax in figure.axes][:3] == ["a", "b", "difference"]
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    limits = [bar.get_ylim() for bar in bars]
    assert limits[0] == limits[1] == pytest.approx(tuple(np.percentile([ours, theirs], [2, 98])))
    assert limits[2][0] == -limits[2][1]
    assert limits[2][1] == pytest.approx(np.percentile(np.abs(ours - theirs), 98))


def test_scale_is_the_scene_s_and_not_that_of_the_map_beside_it(scene, tmp_path):
    values = np.full((1, HEIGHT, WIDTH), 0.8, np.float32)
    values[0, 0] = 0.2
    path = write_envi(tmp_path / "p", values, **{"specfast kind": "probabilities"})
    shown = pages.show(path, against=[scene], scale=10000)
    (numbers,) = shown.summary["maps"].values()
    assert numbers["median"] == pytest.approx(0.8)
    with pytest.raises(DataError, match=r"scale: goes with scene, but .*p\.hdr is of kind continuous"):
        pages.show(path, scale=10000)


def test_embedding_shows_components_beside_its_scene(scene, tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 6, 8)).astype(np.float32)
    np.save(tmp_path / "e.npy", values)
    shown = pages.show(tmp_path / "e.npy", kind="embedding", against=[scene])
    assert len(shown.summary["explained"]) == 3
    assert [picture.shape[:2] for picture in images(shown)] == [(6, 8), (HEIGHT, WIDTH)]
    np.save(tmp_path / "f.npy", values[:2])
    with pytest.raises(DataError, match="has 2 channels; expected at least 3"):
        pages.show(tmp_path / "f.npy", kind="embedding")


def test_second_embedding_is_shown_on_the_axes_of_the_first(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 6, 8)).astype(np.float32)
    np.save(tmp_path / "e.npy", values)
    np.save(tmp_path / "f.npy", values[:, ::-1])
    for name in ("e", "f"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"kind": "embedding"}))
    first, second = images(pages.show(tmp_path / "e.npy", against=[tmp_path / "f.npy"]))
    np.testing.assert_allclose(first, second[::-1])


def test_folder_of_maps_is_one_page(class_map, change_map):
    shown = pages.show(class_map.parent)
    assert shown.kind == "maps"
    assert shown.summary["files"] == {"change.npy": "continuous", "classes.hdr": "classes"}
    assert pages.maps(class_map.parent).name == "report.html"


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.ones((1, 1), int), "classes"),
        (np.full((1, 50), 0.3), "continuous"),
        (np.ones((1, 1, 9)), "scene"),
        (np.arange(10.0).reshape(5, 1, 2), "embedding"),
    ],
)
def test_smallest_and_constant_files_can_be_shown(tmp_path, array, kind):
    np.save(tmp_path / "x.npy", array)
    shown = pages.show(tmp_path / "x.npy", kind=kind)
    shown.save(tmp_path / "x.png")
    json.dumps(shown.summary, allow_nan=False)


@pytest.mark.parametrize("kind", ["classes", "continuous", "scene", "embedding"])
def test_files_without_a_number_say_so(tmp_path, kind):
    np.save(tmp_path / "x.npy", np.full((4, 4) if kind in ("classes", "continuous") else (4, 4, 4), np.nan))
    with pytest.raises(DataError, match=r"x\.npy: .*(no pixel has|holds no number|hold an embedding|is good)"):
        pages.show(tmp_path / "x.npy", kind=kind)


def test_saving_as_png_svg_html_and_nothing_else(class_map, tmp_path):
    shown = pages.show(class_map)
    assert shown.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in shown.save(tmp_path / "a.svg").read_bytes()
    assert shown.save(tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(DataError, match=r"a file that ends in \.png, \.svg, \.html"):
        shown.save(tmp_path / "a.jpg")
    assert pages.show(class_map).save(tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
