"""The one picture that sums a run up: input, masked, reconstruction, class map, spectrum and probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specfast.report.maps import draw_picture
from specfast.report.plots import SpectrumPanel, _kind_handles, draw_probe, draw_spectrum
from specfast.report.style import new_figure, styled

DPI = 100
WIDTH = 16.0  # inches: 1600 pixels


@styled(scale=1.55)
def overview(
    pictures: Sequence[tuple[str, np.ndarray]],
    spectrum: SpectrumPanel,
    quantity: str,
    probe: Sequence[Mapping],
    probe_title: str,
    metric: str = "overall accuracy (%)",
):
    """Return the overview, 1600 pixels wide when saved with ``DPI``.

    Args:
        pictures: (title, picture [H, W, 3]) for the row on top.
        spectrum: the pixel shown below on the left, and its axis ``quantity``.
        probe: rows of one group as :func:`specfast.report.plots.probe_chart` takes, shown on the right.
    """
    methods = list(dict.fromkeys(row["method"] for row in probe))
    below = 1.9 + 0.36 * max(len(methods), 8)
    fig = new_figure(WIDTH, WIDTH / len(pictures) + 0.35 + below)
    top, bottom = fig.subfigures(2, 1, height_ratios=[WIDTH / len(pictures) + 0.35, below])
    for (title, picture), ax in zip(pictures, top.subplots(1, len(pictures)), strict=True):
        draw_picture(ax, picture, title)
    left, right = bottom.subplots(1, 2, width_ratios=[1, 1])
    draw_spectrum(left, spectrum, quantity=quantity)
    draw_probe(right, probe, methods)
    right.set_title(probe_title)
    right.set_xlabel(metric)
    handles = _kind_handles({row["kind"] for row in probe})
    right.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.3, -0.14), ncols=len(handles), columnspacing=1.0
    )
    return fig
