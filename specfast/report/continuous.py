"""Maps of one number a pixel: perceptually uniform colors, gray where nothing is known, and a bar that says what is
shown. Legend: H x W pixels; NaN, and pixels outside ``valid``, hold no value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specfast.report.maps import draw_picture
from specfast.report.style import COLORMAPS, INK, MASKED, SKY, VERMILLION, is_wide, map_size, new_figure, styled

_BINS = 60  # of the histogram beside an anomaly map


def value_limits(values, percentiles=(2.0, 98.0), valid=None) -> tuple[float, float]:
    """Return the low and high end of the color scale: two percentiles of the finite, valid values.

    Args:
        values: [H, W] or any shape.
        percentiles: two numbers, 0 to 100, ascending; (0, 100) is the whole range.
        valid: bool of the same shape, pixels that count.

    Raises:
        ValueError: no value is finite and valid, or the percentiles are not ascending.
    """
    low_share, high_share = (float(share) for share in percentiles)
    if not 0 <= low_share < high_share <= 100:
        raise ValueError(f"percentiles: expected two ascending numbers from 0 to 100, got {low_share:g} {high_share:g}")
    values = np.asarray(values, dtype=float)
    keep = np.isfinite(values) if valid is None else np.isfinite(values) & np.asarray(valid, dtype=bool)
    if not keep.any():
        raise ValueError("values: expected at least one finite, valid pixel, got none")
    low, high = np.percentile(values[keep], (low_share, high_share))
    if high <= low:  # a constant map: one color, in the middle of a bar that has a length
        half = 0.5 * abs(low) or 0.5
        low, high = low - half, low + half
    return float(low), float(high)


def continuous_picture(values, limits: tuple[float, float], colormap: str = COLORMAPS["value"], valid=None):
    """Return a picture [H, W, 3] of floats 0-1: each value's color, neutral gray where there is none.

    Args:
        values: [H, W].
        limits: values of the colormap's two ends; what lies beyond has the end's color.
        colormap: a matplotlib colormap's name.
        valid: [H, W] bool.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    values = np.asarray(values, dtype=float)
    missing = ~np.isfinite(values) if valid is None else ~(np.isfinite(values) & np.asarray(valid, dtype=bool))
    low, high = limits
    share = np.clip((np.where(missing, low, values) - low) / (high - low), 0.0, 1.0)
    picture = colormaps[colormap](share)[..., :3]
    picture[missing] = to_rgb(MASKED)
    return picture


def draw_continuous(
    ax,
    values,
    title: str,
    quantity: str,
    *,
    limits: tuple[float, float] | None = None,
    percentiles=(2.0, 98.0),
    colormap: str = COLORMAPS["value"],
    valid=None,
) -> None:
    """Draw a map with its color bar into ``ax``; arguments as :func:`continuous_map`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"values: expected [H, W], got shape {list(values.shape)}")
    limits = value_limits(values, percentiles, valid) if limits is None else (float(limits[0]), float(limits[1]))
    ax.imshow(continuous_picture(values, limits, colormap, valid))
    ax.set_title(title)
    ax.set_axis_off()
    shown = (
        values[np.isfinite(values)] if valid is None else values[np.isfinite(values) & np.asarray(valid, dtype=bool)]
    )
    below, above = bool((shown < limits[0]).any()), bool((shown > limits[1]).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = ax.figure.colorbar(
        ScalarMappable(Normalize(*limits), colormap),
        ax=ax,
        orientation="horizontal" if is_wide(values.shape) else "vertical",
        extend=extend[below, above],
        aspect=28,
        pad=0.02,
    )
    bar.set_label(quantity)
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)


@styled
def continuous_map(
    values,
    quantity: str,
    title: str = "",
    *,
    limits: tuple[float, float] | None = None,
    percentiles=(2.0, 98.0),
    colormap: str = COLORMAPS["value"],
    valid=None,
):
    """A map of numbers with its color bar; arrows at the bar's ends say that values lie beyond.

    Args:
        values: [H, W], any unit.
        quantity: what the bar says, with the unit.
        title: above the map.
        limits: ends of the color scale; None for ``percentiles`` of the values.
        percentiles: see :func:`value_limits`.
        colormap: a matplotlib colormap's name; the house's are in ``style.COLORMAPS``.
        valid: [H, W] bool; other pixels are gray.

    Raises:
        ValueError: not [H, W], or no pixel has a value.
    """
    values = np.asarray(values)
    fig = new_figure(*map_size(values.shape, 4.6, beside=0.9))
    draw_continuous(
        fig.subplots(),
        values,
        title,
        quantity,
        limits=limits,
        percentiles=percentiles,
        colormap=colormap,
        valid=valid,
    )
    return fig


@dataclass
class NumberPanel:
    """One map among several.

    Attributes:
        title: above it.
        values: [H, W], NaN where there is none.
        quantity: what its bar says, with the unit.
        colormap: a matplotlib colormap's name.
        limits: ends of its color scale; None for percentiles of its values.
    """

    title: str
    values: np.ndarray
    quantity: str
    colormap: str = COLORMAPS["value"]
    limits: tuple[float, float] | None = None


@styled
def continuous_maps(
    panels: Sequence[NumberPanel],
    *,
    pictures: Sequence[tuple[str, np.ndarray]] = (),
    percentiles=(2.0, 98.0),
    columns: int = 3,
):
    """Several maps of one scene, each with its own bar.

    Args:
        panels: the maps.
        pictures: (title, picture [H, W, 3]) shown before them, such as the scene's composite.
        percentiles: of each map whose limits are None, see :func:`value_limits`.
        columns: panels in a row.

    Raises:
        ValueError: no map, one that is not [H, W], or one without a value.
    """
    if not panels:
        raise ValueError("panels: expected at least one map, got none")
    count = len(pictures) + len(panels)
    columns = min(columns, count)
    rows = -(-count // columns)
    width, height = map_size(np.shape(panels[0].values), 3.4, beside=0.9)
    fig = new_figure(width * columns, height * rows, layout="compressed")
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    for (title, picture), ax in zip(pictures, axes, strict=False):
        draw_picture(ax, picture, title)
    for panel, ax in zip(panels, axes[len(pictures) :], strict=False):
        draw_continuous(
            ax,
            panel.values,
            panel.title,
            panel.quantity,
            limits=panel.limits,
            percentiles=percentiles,
            colormap=panel.colormap,
        )
    return fig


def uncertainty_map(uncertainty, title: str = "Uncertainty", *, quantity: str = "expected |error|", valid=None):
    """Map of per-pixel uncertainty [H, W], from 0 to its 98th percentile, in a scale told apart from that of values.

    Raises:
        ValueError: not [H, W], no pixel has a value, or one is negative.
    """
    uncertainty = np.asarray(uncertainty, dtype=float)
    limits = uncertainty_limits(uncertainty, valid)
    return continuous_map(uncertainty, quantity, title, limits=limits, colormap=COLORMAPS["uncertainty"], valid=valid)


def uncertainty_limits(uncertainty, valid=None) -> tuple[float, float]:
    """Return 0 and the 98th percentile; ValueError for a negative uncertainty."""
    if np.nanmin(np.where(np.isfinite(uncertainty), uncertainty, np.nan), initial=0.0) < 0:
        raise ValueError("uncertainty: expected numbers of at least 0, got a negative one")
    high = value_limits(uncertainty, (0.0, 98.0), valid)[1]
    return 0.0, high if high > 0 else 1.0


@styled
def anomaly_map(score, truth=None, *, title: str = "Anomaly score", quantity: str = "score", percentiles=(1.0, 99.9)):
    """Map of anomaly scores beside their distribution, with the known targets outlined and told apart in it.

    Args:
        score: [H, W], higher is more anomalous; NaN where invalid.
        truth: [H, W], nonzero where a target is known to be; None if nothing is known.
        title, quantity: above the map, and what the bar says.
        percentiles: ends of the color scale: the upper one is high, because anomalies are few.

    Raises:
        ValueError: shapes differ, or no pixel has a score.
    """
    from matplotlib.collections import LineCollection

    score = np.asarray(score, dtype=float)
    target = None if truth is None else np.asarray(truth) != 0
    if target is not None and target.shape != score.shape:
        raise ValueError(f"truth: expected {list(score.shape)} to match score, got {list(target.shape)}")
    width, height = map_size(score.shape, 4.4, beside=0.9)
    fig = new_figure(width + 3.4, max(height, 2.8))
    left, right = fig.subplots(1, 2, width_ratios=[width, 3.4])
    draw_continuous(left, score, title, quantity, percentiles=percentiles, colormap=COLORMAPS["anomaly"])
    finite = np.isfinite(score)
    edges = np.histogram_bin_edges(score[finite], _BINS, value_limits(score, (0.0, 100.0)))
    if target is None or not target.any():
        right.hist(score[finite], edges, histtype="step", color=INK, linewidth=1.4)
    else:
        left.add_collection(LineCollection(outline(target), colors=SKY, linewidths=1.2))
        for label, pixels, color in (("background", ~target, INK), ("known targets", target, VERMILLION)):
            right.hist(score[finite & pixels], edges, histtype="step", color=color, linewidth=1.4, label=label)
        right.legend()
    right.set_yscale("log")
    right.set_xlabel(quantity)
    right.set_ylabel("pixels")
    right.set_title("Distribution")
    return fig


def outline(mask) -> np.ndarray:
    """Return the edges of the pixels where ``mask`` [H, W] begins or ends: float [n, 2 ends, (x, y)] in pixels."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([[column - 0.5, row - 0.5], [column - 0.5, row + 0.5]])
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([[column - 0.5, row - 0.5], [column + 0.5, row - 0.5]])
    return np.concatenate([upright, level], axis=2).transpose(2, 0, 1)
