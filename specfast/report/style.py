"""One look for every figure: colors, type, and how a figure becomes SVG or PNG.

Figures are made without pyplot, so drawing one leaves no global state behind and needs no display.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np

# Okabe & Ito, "Color universal design" (2008): told apart under every common color vision deficiency.
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
LINE_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE)
INK, MUTED, GRID = "#1f2933", "#66727f", "#d9dee3"
SHADE = "#eceff2"

# Sixteen colors at least 0.11 apart in Oklab under normal vision and under simulated deuteranopia and protanopia
# (Machado et al. 2009), found by farthest-point search with exchange; tests/report/test_style.py measures it again.
CLASS_COLORS = (
    "#157ffd",
    "#fe891f",
    "#508d6f",
    "#ae51b9",
    "#03c88e",
    "#670f0a",
    "#75defd",
    "#fecb0f",
    "#0b00fa",
    "#a59cdf",
    "#f3322d",
    "#1c3757",
    "#acffb1",
    "#6c5375",
    "#5100a2",
    "#aa2304",
)
UNLABELED = "#eef1f4"
MASKED = "#c3c9d0"  # removed patches and invalid pixels in composites

# Perceptually uniform (van der Walt and Smith 2015; Nunez et al. 2018), one for each kind of number, so that a reader
# who has seen one figure knows what the next one shows. The diverging one is ColorBrewer's, safe for the color blind.
COLORMAPS = {
    "value": "viridis",
    "change": "magma",
    "anomaly": "inferno",
    "uncertainty": "cividis",
    "difference": "RdBu_r",
}

_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "svg.hashsalt": "specfast",  # the same figure gives the same file
    "svg.fonttype": "path",
}
_SIZES = {"font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 9.0, "legend.fontsize": 8.5}
_SIZES |= {"xtick.labelsize": 8.5, "ytick.labelsize": 8.5}


def matplotlib():
    """Return the matplotlib package; raise ImportError naming the extra when it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "specfast[plot]"') from error
    return matplotlib


def styled(function=None, *, scale: float = 1.0):
    """Decorate a function that draws, so that it draws in this look; ``scale`` enlarges all type."""
    if function is None:
        return functools.partial(styled, scale=scale)

    @functools.wraps(function)
    def inner(*args, **kwargs):
        with matplotlib().rc_context({**_RC, **{key: size * scale for key, size in _SIZES.items()}}):
            return function(*args, **kwargs)

    return inner


def new_figure(width: float, height: float, layout: str = "constrained"):
    """Return an empty Figure of ``width`` x ``height`` inches, tied to no window; ``compressed`` suits rows of maps."""
    matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def is_wide(shape: Sequence[int]) -> bool:
    """Whether a map of ``shape`` [H, W] has its color bar below rather than beside it."""
    return shape[1] > 1.6 * shape[0]


def map_size(shape: Sequence[int], longest: float, beside: float = 0.0, above: float = 0.35) -> tuple[float, float]:
    """Return width and height in inches for a map of ``shape`` [H, W]: no side above ``longest``, none below a third.

    ``beside`` is kept free for a color bar (below, where the map is wide), ``above`` for the title.
    """
    height, width = (max(1, int(n)) for n in tuple(shape)[:2])
    scale = longest / max(height, width)
    drawn = max(width * scale, longest / 3), max(height * scale, longest / 3)
    wide = is_wide(shape)
    return drawn[0] + (0.0 if wide else beside), drawn[1] + above + (beside if wide else 0.0)


@styled
def to_svg(fig) -> bytes:
    """Render ``fig`` as SVG without dates or metadata."""
    out = io.BytesIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()


@styled
def to_png(fig, dpi: float = 192) -> bytes:
    """Render ``fig`` as PNG; the default is two pixels for each CSS pixel."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def picture_png(picture) -> bytes:
    """Return a picture [H, W, 3] of floats 0-1 as PNG, one pixel of the file for each of the picture.

    Raises:
        ValueError: not [H, W, 3].
    """
    matplotlib()
    from matplotlib.image import imsave

    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"picture: expected [H, W, 3], got shape {list(picture.shape)}")
    out = io.BytesIO()
    pixels = (np.clip(picture, 0.0, 1.0) * 255).round().astype(np.uint8)
    imsave(out, pixels, format="png", metadata={"Software": None})
    return out.getvalue()


def class_colors(count: int) -> list[str]:
    """Return ``count`` colors for classes 1..count; beyond the sixteen distinct ones they repeat."""
    return [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(count)]
