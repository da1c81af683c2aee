"""A scene's overview: which colors, which pixels, whose spectra; bad bands shaded one by one."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from specfast import report
from specfast.report import style
from specfast.report.composites import display_bands
from specfast.report.plots import SpectrumPanel, unmeasured
from specfast.report.scenes import SceneView, distinct_pixels

WAVELENGTH = np.arange(400.0, 1000.0, 10.0)


def test_a_single_bad_band_is_shaded_where_it_lies():
    good = np.ones(60, bool)
    good[[20, 30, 31]] = False
    assert unmeasured(WAVELENGTH, good) == [(595.0, 605.0), (695.0, 715.0)]
    assert unmeasured(WAVELENGTH) == []


def test_a_bad_band_that_another_detector_covers_is_not_shaded():
    wavelength = np.concatenate([np.arange(400, 700, 10.0), np.arange(605, 900, 10.0)])
    good = np.ones(len(wavelength), bool)
    good[25] = False  # 650 nm, between 645 and 655 nm of the second detector
    assert unmeasured(wavelength, good) == []


@pytest.mark.parametrize(
    ("wavelength", "bands", "name"),
    [
        (WAVELENGTH, (25, 15, 7), "natural color (650, 550, 470 nm)"),
        (WAVELENGTH[15:], (30, 10, 0), "false color (850, 650, 550 nm)"),
        (np.arange(1000.0, 1060.0, 10.0), (4, 2, 1), "false color (1040, 1020, 1010 nm)"),
        (np.arange(1000.0, 1060.0, 10.0)[::-1], (1, 3, 4), "false color (1040, 1020, 1010 nm)"),
    ],
)
def test_colors_are_the_most_natural_that_the_sensor_has(wavelength, bands, name):
    assert display_bands(wavelength) == (bands, name)


def test_colors_leave_bad_bands_out_and_say_if_none_is_left():
    good = np.ones(60, bool)
    good[25] = False
    assert display_bands(WAVELENGTH, good)[0][0] in (24, 26)
    with pytest.raises(ValueError, match="at least one usable band"):
        display_bands(WAVELENGTH, np.zeros(60, bool))


def test_distinct_pixels_find_each_color_once_and_the_commonest_first():
    picture = np.zeros((40, 40, 3))
    picture[:, 25:] = [1.0, 0.2, 0.0]
    picture[30:, :10] = [0.0, 0.3, 1.0]
    found = distinct_pixels(picture, 5)
    assert len(found) == 3, "three colors, three pixels"
    assert picture[found[0]].tolist() == [0.0, 0.0, 0.0]
    assert {tuple(picture[place]) for place in found} == {(0.0, 0.0, 0.0), (1.0, 0.2, 0.0), (0.0, 0.3, 1.0)}
    assert found == distinct_pixels(picture, 5)


def test_distinct_pixels_avoid_lone_outliers():
    picture = np.full((30, 30, 3), 0.5)
    picture[:, 15:] = 0.9
    picture[5, 5] = 0.0
    assert (5, 5) not in distinct_pixels(picture, 2)


def view(title="scene", lines=2, **kwargs):
    panel = SpectrumPanel("AVIRIS", "", WAVELENGTH, {f"{n}": WAVELENGTH * n for n in range(1, lines + 1)})
    return SceneView(title, np.zeros((6, 8, 3)), panel, "radiance", **kwargs)


def test_overview_marks_pixels_in_the_scenes_own_numbers():
    fig = report.scene_overview([view(step=(10, 10), corner=(100, 40))], [(120, 70), (101, 41)])
    left, right = fig.axes
    assert left.get_xlim() == (39.5, 119.5)
    assert left.get_ylim() == (159.5, 99.5)
    marks = [line for line in left.lines if line.get_marker() == "o"]
    assert [(line.get_ydata()[0], line.get_xdata()[0]) for line in marks] == [(120, 70), (101, 41)]
    assert [text.get_text() for text in left.texts] == ["1", "2"]
    assert [mark.get_markeredgecolor() for mark in marks] == [line.get_color() for line in right.lines]
    assert right.get_title("left") == "AVIRIS"
    assert right.get_ylabel() == "radiance"


def test_a_flightlines_picture_fills_its_place_in_true_numbers():
    (left, _) = report.scene_overview([view(step=(50, 2))], [(120, 7), (10, 1)]).axes
    assert left.get_xlim() == (-0.5, 15.5)
    assert left.get_ylim() == (299.5, -0.5)
    assert left.get_aspect() == 2 / 50, "pixels of the picture are square"
    long = view()
    long.picture = np.zeros((100, 8, 3))
    fig = report.scene_overview([long], [(5, 5), (70, 2)])
    style.styled(fig.draw_without_rendering)()
    place = fig.axes[0].get_window_extent()
    assert place.width > place.height / 6, "a sliver would not be seen"


def test_overview_has_a_row_for_each_scene_and_refuses_what_cannot_be_told_apart():
    fig = report.scene_overview([view("before"), view("after")], [(1, 1), (2, 2)])
    assert len(fig.axes) == 4
    with pytest.raises(ValueError, match="at most 6, got 7"):
        report.scene_overview([view(lines=7)], [(0, 0)] * 7)
    with pytest.raises(ValueError, match="expected 1 spectra, one a pixel; got 2"):
        report.scene_overview([view()], [(0, 0)])
    with pytest.raises(ValueError, match="at least one scene"):
        report.scene_overview([], [])
