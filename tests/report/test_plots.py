"""Figures say what they are given: axes, lines, gaps, legends, colors."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from specfast import report
from specfast.report import style
from specfast.report.maps import class_picture
from specfast.report.plots import SpectrumPanel, band_runs, running_mean, unmeasured

GAPPED = np.concatenate([np.arange(400, 500, 10.0), np.arange(600, 700, 10.0)])
OVERLAPPING = np.concatenate([np.arange(400, 500, 10.0), np.arange(475, 600, 10.0)])


def texts(fig):
    from matplotlib.text import Text

    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def test_lines_break_at_gaps_overlaps_and_bad_bands():
    assert [len(run) for run in band_runs(GAPPED)] == [10, 10]
    assert [len(run) for run in band_runs(OVERLAPPING)] == [10, 13]
    good = np.ones(20, bool)
    good[4] = False
    runs = band_runs(np.arange(400, 600, 10.0), good)
    assert [list(run) for run in runs] == [[0, 1, 2, 3], list(range(5, 20))]


def test_ranges_without_a_good_band_are_found():
    assert unmeasured(GAPPED) == [(495.0, 595.0)]
    assert unmeasured(OVERLAPPING) == []
    good = np.ones(20, bool)
    good[8:12] = False
    good[18:] = False
    assert unmeasured(np.arange(400, 600, 10.0), good) == [(475.0, 515.0), (575.0, 590.0)]


def test_spectra_draw_each_line_name_the_sensor_and_shade_the_gap():
    panels = [
        SpectrumPanel("row 1: Woods", "AVIRIS", GAPPED, {"input": np.sin(GAPPED), "reconstruction": np.cos(GAPPED)}),
        SpectrumPanel("row 1: Woods", "EnMAP", OVERLAPPING, {"input": OVERLAPPING}),
        SpectrumPanel("row 9: Oats", "EnMAP", OVERLAPPING, {"input": OVERLAPPING}),
    ]
    fig = report.spectra(panels, "radiance")
    assert len(fig.axes) == 3
    first = fig.axes[0]
    assert len(first.lines) == 4
    assert len(first.patches) == 1
    assert first.patches[0].get_x() == 495.0
    assert first.patches[0].get_width() == 100.0
    np.testing.assert_array_equal(np.concatenate([line.get_ydata() for line in first.lines[:2]]), np.sin(GAPPED))
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["input", "reconstruction"]
    assert {"AVIRIS", "EnMAP", "row 9: Oats", "radiance", "wavelength (nm)"} <= set(texts(fig))
    with pytest.raises(ValueError, match=r"input: expected \[20\] values"):
        report.spectra([SpectrumPanel("t", "s", GAPPED, {"input": np.zeros(3)})], "radiance")


def test_probe_chart_has_room_for_long_names_and_its_legend():
    name = "LDA, raw spectrum beside the frozen features of a random encoder"
    kinds = ("fine-tuned", "features", "control", "baseline")
    rows = [
        {"method": f"{name} {n}", "kind": kind, "group": "random", "values": [50 + n]} for n, kind in enumerate(kinds)
    ]
    fig = report.probe_chart(rows)
    style.styled(fig.draw_without_rendering)()
    page = fig.bbox
    inside = [
        fig.legends[0].get_window_extent(),
        *(label.get_window_extent() for label in fig.axes[0].get_yticklabels()),
    ]
    assert all(box.x0 >= page.x0 and box.x1 <= page.x1 for box in inside)
    assert fig.axes[0].get_window_extent().width > 150


def test_loss_curves_have_each_part_and_the_learning_rate():
    step = np.arange(100)
    history = {"step": step, "loss": 3.0 + step, "loss_spectral": 1.0 + step, "loss_charbonnier": 1.0 + 0 * step}
    fig = report.loss_curves({**history, "lr": 1e-3 * step})
    assert len(fig.axes) == 2
    assert len(fig.axes[0].lines) == 6
    assert len(fig.axes[0].get_legend().get_texts()) == 3
    np.testing.assert_array_equal(fig.axes[1].lines[0].get_ydata(), 1e-3 * step)
    assert len(report.loss_curves({"step": [1], "loss": [-0.5]}).axes) == 1
    with pytest.raises(ValueError, match="'loss'"):
        report.loss_curves({"step": [1, 2]})
    with pytest.raises(ValueError, match="'lr' holds 1 values for 2 steps"):
        report.loss_curves({"step": [1, 2], "loss": [1, 2], "lr": [1]})


def test_running_mean_keeps_lines_straight_and_averages_noise():
    line = np.arange(200.0)
    np.testing.assert_allclose(running_mean(line)[5:-5], line[5:-5])
    noise = np.random.default_rng(0).normal(size=2000)
    assert running_mean(noise).std() < 0.2
    assert running_mean([2.0]).tolist() == [2.0]


def probe_rows():
    return [
        {"method": method, "kind": kind, "group": group, "values": [base - 1, base, base + 1.0]}
        for group in ("random, 10", "field-disjoint, 10", "field-disjoint, 50")
        for method, kind, base in (
            ("features", "features", 60),
            ("random encoder", "control", 50),
            ("raw", "baseline", 55),
        )
    ]


def test_probe_chart_shows_means_seeds_and_kinds():
    fig = report.probe_chart(probe_rows())
    assert [ax.get_title("left").replace("\n", " ") for ax in fig.axes] == [
        "random, 10",
        "field-disjoint, 10",
        "field-disjoint, 50",
    ]
    ax = fig.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["features", "random encoder", "raw"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first method belongs on top"
    assert {"60.0", "50.0", "55.0"} <= set(texts(fig))
    seeds = [line for line in ax.lines if line.get_marker() == "|" and len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in seeds] == [[59, 60, 61], [49, 50, 51], [54, 55, 56]]
    bars = [container.lines[2][0].get_segments()[0] for container in ax.containers]
    np.testing.assert_allclose([bar[1][0] - bar[0][0] for bar in bars], [2.0, 2.0, 2.0])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "frozen SpecAware features",
        "control",
        "baseline",
    ]
    with pytest.raises(ValueError, match="kind: expected one of"):
        report.probe_chart([{"method": "a", "kind": "winner", "group": "g", "values": [1]}])


def test_band_error_draws_each_sensor_and_label():
    fig = report.band_error(
        {"A": (GAPPED, {"error": GAPPED, "spread": 2 * GAPPED}), "B": (OVERLAPPING, OVERLAPPING)}, "error"
    )
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A: error", "A: spread", "B"]
    assert len(ax.lines) == 6
    assert ax.get_ylim()[0] == 0
    assert not ax.patches, "a gap of one sensor only is not shaded"


def test_reconstructions_show_every_picture():
    pictures = [(title, np.full((4, 4, 3), 0.5)) for title in ("input", "masked", "reconstruction")]
    fig = report.reconstructions([("AVIRIS", pictures), ("EnMAP", pictures)])
    assert sum(len(ax.images) for ax in fig.axes) == 6
    assert {"AVIRIS", "EnMAP", "masked"} <= set(texts(fig))
    with pytest.raises(ValueError, match="equally many"):
        report.reconstructions([("a", pictures), ("b", pictures[:1])])


def test_class_maps_share_colors_and_a_legend_with_counts():
    truth = np.array([[0, 1, 1], [2, 2, 2]])
    fig = report.class_maps([("ground truth", truth), ("probe", truth[::-1])], ["Corn", "Woods"], counts=[2, 3])
    assert len(fig.axes) == 2
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["Corn (2)", "Woods (3)"]
    shown = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[0, 0], to_rgb(style.UNLABELED))
    for handle, position in zip(fig.legends[0].get_patches(), [(0, 1), (1, 0)], strict=True):
        np.testing.assert_allclose(shown[position], handle.get_facecolor()[:3])
    np.testing.assert_allclose(class_picture(truth, 2, where=truth == 2)[0], np.array([to_rgb(style.UNLABELED)] * 3))
    with pytest.raises(ValueError, match="ids 0 to 1"):
        class_picture(truth, 1)


def test_confusion_is_scaled_by_true_class():
    fig = report.confusion([[3, 1, 0], [0, 10, 0], [0, 0, 0]], ["a", "b", "empty"])
    (ax,) = fig.axes
    np.testing.assert_allclose(ax.images[0].get_array(), [[75, 25, 0], [0, 100, 0], [0, 0, 0]])
    assert sorted(text.get_text() for text in ax.texts) == ["100", "25", "75"]
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        report.confusion(np.zeros((3, 3)), ["a", "b"])


def test_overview_is_1600_pixels_wide_with_every_part():
    from specfast.report.montage import DPI
    from specfast.report.style import to_png

    pictures = [(title, np.zeros((8, 8, 3))) for title in ("input", "masked", "reconstruction", "truth", "map")]
    panel = SpectrumPanel("pixel", "AVIRIS", GAPPED, {"input": GAPPED})
    fig = report.overview(pictures, panel, "radiance", probe_rows()[:3], "field-disjoint")
    png = to_png(fig, DPI)
    assert int.from_bytes(png[16:20], "big") == 1600
    assert {"truth", "pixel", "field-disjoint", "raw"} <= set(texts(fig))


def test_class_colors_stay_apart_for_color_blind_eyes():
    def linear(rgb):
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)

    def oklab(rgb):
        lms = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
        lab = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
        return np.cbrt(np.clip(rgb, 0, 1) @ lms.T) @ lab.T

    colors = linear(np.array([to_rgb(color) for color in style.CLASS_COLORS]))
    assert len(colors) == 16
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    for vision in (np.eye(3), np.array(protan), np.array(deutan)):
        seen = oklab(colors @ vision.T)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(16)
        assert distance.min() > 0.1


def test_drawing_leaves_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.loss_curves({"step": [1, 2], "loss": [2.0, 1.0]})
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"specfast\[plot\]"):
        report.loss_curves({"step": [1], "loss": [1.0]})
