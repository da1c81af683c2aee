"""Maps of numbers: limits, colors, bars, gray for what is unknown; change and anomaly figures."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import colormaps
from matplotlib.colors import to_rgb

from specfast import report
from specfast.report.change import OUTCOMES, outcomes
from specfast.report.continuous import continuous_picture, outline, value_limits
from specfast.report.style import COLORMAPS, MASKED, SKY, map_size, to_png


def titles(fig):
    return [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]


def bars(fig):
    return [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]


def test_limits_are_percentiles_of_what_is_valid():
    values = np.arange(101.0)
    assert value_limits(values) == (2.0, 98.0)
    assert value_limits(np.append(values, [np.nan, np.inf])) == (2.0, 98.0)
    assert value_limits(values, (0, 100), valid=values < 11) == (0.0, 10.0)
    low, high = value_limits(np.full(5, 3.0))
    assert low < 3 < high
    with pytest.raises(ValueError, match="finite, valid"):
        value_limits([np.nan])
    with pytest.raises(ValueError, match="ascending numbers from 0 to 100, got 98 2"):
        value_limits(values, (98, 2))


def test_picture_has_the_colormaps_ends_and_gray_holes():
    values = np.array([[0.0, 1.0, -5.0, 9.0, np.nan]])
    picture = continuous_picture(values, (0.0, 1.0), "cividis", valid=np.array([[1, 1, 1, 1, 1]]))
    low, high = (colormaps["cividis"](end)[:3] for end in (0.0, 1.0))
    np.testing.assert_allclose(picture[0], [low, high, low, high, to_rgb(MASKED)])
    hidden = continuous_picture(values, (0.0, 1.0), valid=np.array([[0, 1, 1, 1, 1]]))
    np.testing.assert_allclose(hidden[0, 0], to_rgb(MASKED))


@pytest.mark.parametrize("meaning", [name for name in COLORMAPS if name != "difference"])
def test_sequential_colormaps_rise_evenly_in_lightness(meaning):
    rgb = colormaps[COLORMAPS[meaning]](np.linspace(0, 1, 101))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)  # CIE 1976 L*
    step = np.diff(lightness)
    assert step.min() > 0
    assert lightness[-1] - lightness[0] > 55
    # half the scale covers about half the lightness, so equal steps look equal also without color
    assert 0.4 < (lightness[50] - lightness[0]) / (lightness[-1] - lightness[0]) < 0.6


def test_map_names_its_quantity_and_says_what_lies_beyond():
    values = np.arange(200.0).reshape(10, 20)
    values[0, 0] = np.nan
    fig = report.continuous_map(values, "abundance", "soil", percentiles=(10, 100))
    assert titles(fig) == ["soil"]
    (bar,) = bars(fig)
    assert "abundance" in (bar.get_ylabel(), bar.get_xlabel())
    low = float(np.percentile(values[np.isfinite(values)], 10))
    assert bar.get_xlim() == pytest.approx((low, 199.0)) or bar.get_ylim() == pytest.approx((low, 199.0))
    np.testing.assert_allclose(fig.axes[0].images[0].get_array()[0, 0], to_rgb(MASKED))
    with pytest.raises(ValueError, match=r"expected \[H, W\]"):
        report.continuous_map(np.zeros((2, 3, 4)), "x")


@pytest.mark.parametrize(("shape", "across"), [((40, 20), False), ((20, 40), True)])
def test_bar_lies_beside_tall_maps_and_below_wide_ones(shape, across):
    fig = report.continuous_map(np.random.default_rng(0).random(shape), "x")
    fig.canvas.draw()
    place, bar = fig.axes[0].get_position(), bars(fig)[0].get_position()
    assert (bar.y1 < place.y0) == across
    assert (bar.x0 > place.x1) != across


def test_map_sizes_keep_the_shape_but_no_sliver():
    width, height = map_size((100, 200), 4.0, above=0.0)
    assert (width, height) == (4.0, 2.0)
    assert map_size((10000, 10), 4.0, above=0.0) == (4.0 / 3, 4.0)


def test_several_maps_stand_beside_pictures_each_with_its_own_bar():
    panels = [
        report.NumberPanel(name, np.random.default_rng(n).random((8, 8)), "share") for n, name in enumerate("abcd")
    ]
    fig = report.continuous_maps(panels, pictures=[("scene", np.zeros((8, 8, 3)))])
    assert titles(fig) == ["scene", "a", "b", "c", "d"]
    assert len(bars(fig)) == 4
    with pytest.raises(ValueError, match="at least one map"):
        report.continuous_maps([])


def test_uncertainty_starts_at_zero_and_is_never_negative():
    fig = report.uncertainty_map(np.linspace(0.2, 0.5, 64).reshape(8, 8))
    (bar,) = bars(fig)
    assert bar.get_ylim()[0] == 0
    with pytest.raises(ValueError, match="negative"):
        report.uncertainty_map(np.array([[0.1, -0.1]]))
    report.uncertainty_map(np.zeros((3, 3)))


def test_outcomes_tell_hits_from_misses_and_leave_the_unknown_out():
    change = np.array([0.9, 0.9, 0.1, 0.1, 0.9, np.nan, 0.5])
    truth = np.array([1, 0, 1, 0, -1, 1, 2])
    assert outcomes(change, truth).tolist() == [1, 2, 3, 0, 4, 4, 1]
    assert outcomes(change, np.where(truth < 0, np.nan, truth)).tolist() == [1, 2, 3, 0, 4, 4, 1]
    with pytest.raises(ValueError, match=r"truth: expected \[7\]"):
        outcomes(change, truth[:3])


def test_change_overview_shows_what_it_is_given():
    before, after = np.zeros((6, 8, 3)), np.ones((6, 8, 3))
    change = np.random.default_rng(0).random((6, 8))
    assert titles(report.change_overview(before, after, change)) == ["before", "after", "change"]
    fig = report.change_overview(before, after, change, change / 2, change > 0.4, threshold=0.5)
    assert titles(fig) == ["before", "after", "change", "uncertainty", "against the truth, at 0.5"]
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    missed = int(((change > 0.4) & (change < 0.5)).sum())
    assert f"change missed ({missed})" in labels
    assert not any(label.startswith("false alarm") for label in labels)
    shown = fig.axes[4].images[0].get_array()
    found = np.argwhere(change >= 0.5)[0]
    np.testing.assert_allclose(shown[tuple(found)], to_rgb(dict(OUTCOMES)["change found"]))
    with pytest.raises(ValueError, match=r"after: expected \[6, 8\] pixels"):
        report.change_overview(before, after[:2], change)


def test_change_scale_is_that_of_probabilities_only_within_zero_and_one():
    picture = np.zeros((10, 10, 3))
    low = np.linspace(0.1, 0.4, 100).reshape(10, 10)
    (bar,) = bars(report.change_overview(picture, picture, low))
    assert bar.get_ylim() == (0.0, 1.0)
    (bar,) = bars(report.change_overview(picture, picture, 30 * low))
    assert bar.get_ylim() == pytest.approx(tuple(np.percentile(30 * low, [2, 98])))


def test_anomaly_map_outlines_targets_and_splits_the_distribution():
    score = np.random.default_rng(0).chisquare(10, (30, 40))
    target = np.zeros((30, 40))
    target[10:13, 20:23] = 2
    score[target > 0] += 100
    fig = report.anomaly_map(score, target)
    left, right = fig.axes[:2]
    drawn = left.collections[0]
    np.testing.assert_allclose(drawn.get_color()[0][:3], to_rgb(SKY))
    ends = np.array(drawn.get_segments())
    assert len(ends) == 12, "the edge of 3 x 3 pixels"
    assert (ends.min(axis=(0, 1)).tolist(), ends.max(axis=(0, 1)).tolist()) == ([19.5, 9.5], [22.5, 12.5])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["background", "known targets"]
    assert right.get_yscale() == "log"
    assert report.anomaly_map(score).axes[1].get_legend() is None
    assert report.anomaly_map(score, np.zeros_like(score)).axes[1].get_legend() is None
    with pytest.raises(ValueError, match=r"truth: expected \[30, 40\]"):
        report.anomaly_map(score, target[:2])


def test_outline_follows_single_pixels_holes_and_the_border():
    mask = np.zeros((4, 5), bool)
    assert len(outline(mask)) == 0
    mask[0, 0] = True
    edges = {tuple(map(tuple, edge)) for edge in outline(mask).tolist()}
    assert edges == {
        ((-0.5, -0.5), (-0.5, 0.5)),
        ((0.5, -0.5), (0.5, 0.5)),
        ((-0.5, -0.5), (0.5, -0.5)),
        ((-0.5, 0.5), (0.5, 0.5)),
    }
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert len(outline(ring)) == 16


def test_the_same_map_is_the_same_file():
    values = np.random.default_rng(0).random((8, 8))
    assert to_png(report.continuous_map(values, "x")) == to_png(report.continuous_map(values, "x"))
