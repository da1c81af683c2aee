"""One look for every figure: colors, type, and how a figure becomes SVG or PNG.

Figures are made without pyplot, so drawing one leaves no global state behind and needs no display.
"""

from __future__ import annotations

import functools
import io

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


def new_figure(width: float, height: float, **kwargs):
    """Return an empty constrained-layout Figure of ``width`` x ``height`` inches, tied to no window."""
    matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", **kwargs)


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


def class_colors(count: int) -> list[str]:
    """Return ``count`` colors for classes 1..count; beyond the sixteen distinct ones they repeat."""
    return [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(count)]
