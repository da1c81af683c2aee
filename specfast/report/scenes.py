"""A scene at a glance: its composite with numbered pixels, and their spectra. Legend: C bands, H x W pixels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specfast.report.plots import SpectrumPanel, draw_spectrum
from specfast.report.style import INK, LINE_COLORS, map_size, new_figure, styled

MOST_PIXELS = len(LINE_COLORS)  # spectra that one panel can tell apart


@dataclass
class SceneView:
    """One scene of an overview.

    Attributes:
        title: above the picture.
        picture: [h, w, 3] floats 0-1; may hold only some rows and columns of the scene.
        panel: spectra of the pixels, one line each, in their order.
        quantity: the spectra's axis with its unit.
        axis: what ``panel.wavelength`` counts.
        step: rows and columns of the scene for one of the picture.
        corner: row and column of the picture's upper left pixel in the scene.
    """

    title: str
    picture: np.ndarray
    panel: SpectrumPanel
    quantity: str
    axis: str = "wavelength (nm)"
    step: tuple[int, int] = (1, 1)
    corner: tuple[int, int] = (0, 0)


def distinct_pixels(picture, count: int = 4) -> list[tuple[int, int]]:
    """Return ``count`` (row, column) of pixels of unlike color that stand for their surroundings, the same every time.

    The first is the pixel of the most common color; each further one is the farthest in color from those before
    (Gonzalez 1985), among pixels whose surroundings look like themselves.

    Args:
        picture: [H, W, 3] floats 0-1.
        count: at least 1; fewer are returned of a picture with fewer colors.
    """
    from scipy.ndimage import uniform_filter

    picture = np.asarray(picture, dtype=float)
    smooth = uniform_filter(picture, size=(3, 3, 1), mode="nearest")
    rough = np.abs(picture - smooth).sum(axis=-1)
    quiet = np.flatnonzero(rough <= np.quantile(rough, 0.5))
    colors = smooth.reshape(-1, 3)[quiet]
    chosen = [int(np.square(colors - np.median(colors, axis=0)).sum(axis=1).argmin())]
    distance = np.square(colors - colors[chosen[0]]).sum(axis=1)
    while len(chosen) < count and distance.max() > 1e-4:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(colors - colors[chosen[-1]]).sum(axis=1))
    width = picture.shape[1]
    return [(int(quiet[i]) // width, int(quiet[i]) % width) for i in chosen]


def is_sliver(shape: Sequence[int]) -> bool:
    """Whether a picture [h, w, ...] is so long that it is stretched across to be seen."""
    return shape[0] > 3 * shape[1]


@styled
def scene_overview(views: Sequence[SceneView], pixels: Sequence[tuple[int, int]]):
    """Composite and spectra, a row for each scene; pixels are numbered alike in both.

    Args:
        views: one or more scenes; with several, the same pixels of each are shown.
        pixels: (row, column) in the scene, at most six.

    Raises:
        ValueError: no scene, too many pixels, or a panel with another number of lines.
    """
    if not views:
        raise ValueError("views: expected at least one scene, got none")
    if len(pixels) > MOST_PIXELS:
        raise ValueError(f"pixels: expected at most {MOST_PIXELS}, got {len(pixels)}")
    sizes = [map_size(view.picture.shape, 3.9) for view in views]
    width = max(size[0] for size in sizes)
    fig = new_figure(width + 4.6, sum(max(size[1], 2.9) for size in sizes))
    ratios = [max(size[1], 2.9) for size in sizes]
    axes = fig.subplots(len(views), 2, squeeze=False, width_ratios=[width, 4.6], height_ratios=ratios)
    for view, (left, right) in zip(views, axes, strict=True):
        if len(view.panel.lines) != len(pixels):
            raise ValueError(f"{view.title}: expected {len(pixels)} spectra, one a pixel; got {len(view.panel.lines)}")
        _draw_scene(left, view, pixels)
        if pixels:
            draw_spectrum(right, view.panel, quantity=view.quantity, legend=False)
            right.set_xlabel(view.axis)
            right.legend(
                loc="upper left",
                bbox_to_anchor=(0.0, -0.14),
                ncols=3,
                handlelength=1.2,
                title="row, column",
                alignment="left",
                title_fontsize="small",
                borderaxespad=0.0,
            )
        else:
            right.remove()
    return fig


def _draw_scene(ax, view: SceneView, pixels) -> None:
    """Show the picture in the scene's own pixel numbers, with the pixels marked."""
    height, width = (n * step for n, step in zip(view.picture.shape, view.step, strict=False))
    row, column = view.corner
    place = (column - 0.5, column + width - 0.5, row + height - 0.5, row - 0.5)
    sliver = is_sliver(view.picture.shape)
    ax.imshow(view.picture, extent=place, aspect="auto" if sliver else view.step[1] / view.step[0])
    ax.locator_params(axis="x", nbins=2 if sliver else 6)
    ax.set_title(textwrap.fill(view.title, 40))
    ax.grid(visible=False)
    ax.set_xlabel("column")
    ax.set_ylabel("row")
    for number, ((y, x), color) in enumerate(zip(pixels, LINE_COLORS, strict=False), start=1):
        look = {"markersize": 11, "markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 2}
        ax.plot(x, y, marker="o", zorder=3 + number, **look)
        style = {"ha": "center", "va": "center_baseline", "fontsize": 7, "fontweight": "bold", "color": INK}
        ax.annotate(f"{number}", (x, y), zorder=3 + number, **style)
