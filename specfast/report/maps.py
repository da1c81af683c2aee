"""Pictures over the scene: reconstructions, class maps, and the confusion matrix that sums a map up."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from specfast.report.style import INK, UNLABELED, class_colors, map_size, new_figure, styled


def draw_picture(ax, picture, title: str) -> None:
    """Show ``picture`` without axes."""
    ax.imshow(picture)
    ax.set_title(title)
    ax.set_axis_off()


@styled
def picture_row(pictures: Sequence[tuple[str, np.ndarray]]):
    """Pictures (title, [H, W, 3]) side by side, of whatever sizes."""
    sizes = [map_size(np.shape(picture), 4.0) for _, picture in pictures]
    fig = new_figure(sum(width for width, _ in sizes), max(height for _, height in sizes))
    axes = fig.subplots(1, len(pictures), squeeze=False, width_ratios=[width for width, _ in sizes])[0]
    for (title, picture), ax in zip(pictures, axes, strict=True):
        draw_picture(ax, picture, title)
    return fig


@styled
def reconstructions(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]):
    """Input, masked input and reconstruction side by side, a row for each sensor or crop.

    Args:
        rows: (name of the row, [(title, picture [H, W, 3]), ...]) with equally many pictures in each row.

    Raises:
        ValueError: no rows, or rows of different lengths.
    """
    widths = {len(pictures) for _, pictures in rows}
    if len(widths) != 1:
        raise ValueError(f"rows: expected rows of equally many pictures, got {[len(p) for _, p in rows]}")
    columns = widths.pop()
    fig = new_figure(2.1 * columns, 2.45 * len(rows))
    axes = fig.subplots(len(rows), columns, squeeze=False)
    for (name, pictures), line in zip(rows, axes, strict=True):
        for (title, picture), ax in zip(pictures, line, strict=True):
            draw_picture(ax, picture, title)
        line[0].text(-0.04, 0.5, name, transform=line[0].transAxes, rotation=90, ha="right", va="center", color=INK)
    return fig


def class_picture(classes, count: int, where=None, colors: Sequence | None = None) -> np.ndarray:
    """Return [H, W, 3] with the color of each class; 0, and pixels outside ``where``, look unlabeled.

    Args:
        classes: ids [H, W], 0 to ``count``.
        count: number of classes.
        where: bool [H, W].
        colors: ``count`` colors of classes 1, 2, ...; None for the house's.

    Raises:
        ValueError: a class id is negative or above ``count``.
    """
    from matplotlib.colors import to_rgb

    classes = np.asarray(classes)
    if classes.size and (classes.min() < 0 or classes.max() > count):
        raise ValueError(f"classes: expected ids 0 to {count}, got {classes.min()} to {classes.max()}")
    table = np.array([to_rgb(UNLABELED), *map(to_rgb, class_colors(count) if colors is None else colors)])
    shown = classes if where is None else np.where(where, classes, 0)
    return table[shown]


@styled
def class_maps(
    maps: Sequence[tuple[str, np.ndarray]],
    names: Sequence[str],
    *,
    counts: Sequence[int] | None = None,
    colors: Sequence | None = None,
    pictures: Sequence[tuple[str, np.ndarray]] = (),
    listed: Sequence[int] | None = None,
):
    """Class maps side by side over one legend.

    Args:
        maps: (title, class ids [H, W]; 0 is unlabeled).
        names: K names of classes 1, 2, ...
        counts: [K] pixels of each class, written into the legend.
        colors: K colors; None for the house's.
        pictures: (title, picture [H, W, 3]) shown before the maps, such as the scene's composite.
        listed: indices, from 0, of the classes in the legend; None for all.

    Raises:
        ValueError: no maps, or an id without a name.
    """
    from matplotlib.patches import Patch

    if not maps:
        raise ValueError("maps: expected at least one class map, got none")
    colors = class_colors(len(names)) if colors is None else colors
    listed = range(len(names)) if listed is None else listed
    panels = [*pictures, *((title, class_picture(classes, len(names), colors=colors)) for title, classes in maps)]
    width, height = map_size(np.shape(panels[0][1]), 4.6 if len(panels) == 1 else 3.1)
    width = max(width, 2.6 if len(panels) == 1 else 1.6)
    fig = new_figure(width * len(panels), height + 0.19 * -(-len(listed) // _legend_columns(width * len(panels))))
    for (title, picture), ax in zip(panels, fig.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw_picture(ax, picture, title)
    handles = [
        Patch(facecolor=colors[i], label=names[i] if counts is None else f"{names[i]} ({int(counts[i]):,})")
        for i in listed
    ]
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_legend_columns(width * len(panels)),
        fontsize="x-small",
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
    return fig


def _legend_columns(width: float) -> int:
    """Columns of a legend below a figure of ``width`` inches."""
    return max(1, int(width / 1.55))


@styled
def confusion(matrix, names: Sequence[str], title: str = "Confusion matrix"):
    """Confusion matrix, each true class scaled to 100 %, with the share written into every cell of 1 % or more.

    Args:
        matrix: [K, K] counts, rows the true class, columns the predicted one.
        names: K class names.

    Raises:
        ValueError: the matrix is not [K, K].
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"matrix: expected [{len(names)}, {len(names)}] to match names; got {list(matrix.shape)}")
    total = matrix.sum(axis=1, keepdims=True)
    share = 100 * np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    side = max(1.7 + 0.31 * len(names), 3.4)
    fig = new_figure(side, side - 0.2)
    ax = fig.subplots()
    ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.argwhere(share >= 1):
        ax.text(
            j,
            i,
            f"{share[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if share[i, j] > 55 else INK,
        )
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize="x-small")
    ax.set_yticks(range(len(names)), names, fontsize="x-small")
    ax.grid(visible=False)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.set_title(textwrap.fill(f"{title} (% of each true class)", max(24, int(9 * side))))
    return fig
