"""Pictures over the scene: reconstructions, class maps, and the confusion matrix that sums a map up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specfast.report.style import INK, UNLABELED, class_colors, new_figure, styled


def draw_picture(ax, picture, title: str) -> None:
    """Show ``picture`` without axes."""
    ax.imshow(picture)
    ax.set_title(title)
    ax.set_axis_off()


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


def class_picture(classes, count: int, where=None) -> np.ndarray:
    """Return [H, W, 3] with the color of each class; 0, and pixels outside ``where``, look unlabeled.

    Raises:
        ValueError: a class id is negative or above ``count``.
    """
    from matplotlib.colors import to_rgb

    classes = np.asarray(classes)
    if classes.size and (classes.min() < 0 or classes.max() > count):
        raise ValueError(f"classes: expected ids 0 to {count}, got {classes.min()} to {classes.max()}")
    table = np.array([to_rgb(UNLABELED), *map(to_rgb, class_colors(count))])
    shown = classes if where is None else np.where(where, classes, 0)
    return table[shown]


@styled
def class_maps(maps: Sequence[tuple[str, np.ndarray]], names: Sequence[str], counts_from: np.ndarray | None = None):
    """Class maps side by side over one legend.

    Args:
        maps: (title, class ids [H, W]; 0 is unlabeled).
        names: names of classes 1, 2, ...
        counts_from: class ids [H, W] whose pixels of each class are counted in the legend.

    Raises:
        ValueError: no maps, or an id without a name.
    """
    from matplotlib.patches import Patch

    if not maps:
        raise ValueError("maps: expected at least one class map, got none")
    fig = new_figure(3.1 * len(maps), 3.4 + 0.19 * -(-len(names) // (2 * len(maps))))
    axes = fig.subplots(1, len(maps), squeeze=False)[0]
    for (title, classes), ax in zip(maps, axes, strict=True):
        draw_picture(ax, class_picture(classes, len(names)), title)
    counts = None if counts_from is None else np.bincount(np.ravel(counts_from), minlength=len(names) + 1)
    handles = [
        Patch(facecolor=color, label=name if counts is None else f"{name} ({counts[number]:,})")
        for number, (name, color) in enumerate(zip(names, class_colors(len(names)), strict=True), start=1)
    ]
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 * len(maps),
        fontsize="x-small",
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
    return fig


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
    side = 1.7 + 0.31 * len(names)
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
    ax.set_title(f"{title} (% of each true class)")
    return fig
