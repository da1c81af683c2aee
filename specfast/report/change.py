"""Two dates and what changed between them. Legend: H x W pixels."""

from __future__ import annotations

import numpy as np

from specfast.report.continuous import draw_continuous, uncertainty_limits, value_limits
from specfast.report.maps import draw_picture
from specfast.report.style import COLORMAPS, INK, MASKED, ORANGE, SKY, UNLABELED, map_size, new_figure, styled

# What a thresholded change map got right and wrong, in the order of `outcomes`.
OUTCOMES = (
    ("no change", UNLABELED),
    ("change found", INK),
    ("false alarm", ORANGE),
    ("change missed", SKY),
    ("not judged", MASKED),
)


def outcomes(change, truth, threshold: float = 0.5) -> np.ndarray:
    """Return uint8 [H, W]: 0 no change, 1 change found, 2 false alarm, 3 change missed, 4 not judged.

    Args:
        change: [H, W] probability or score; NaN where invalid.
        truth: [H, W]: above 0 changed, 0 unchanged; negative or NaN where nothing is known.
        threshold: a change is said to be where ``change`` is at least this.

    Raises:
        ValueError: shapes differ.
    """
    change, truth = np.asarray(change, dtype=float), np.asarray(truth, dtype=float)
    if change.shape != truth.shape:
        raise ValueError(f"truth: expected {list(change.shape)} to match change, got {list(truth.shape)}")
    found, real = change >= threshold, truth > 0
    result = np.select([found & real, found, real], [1, 2, 3], 0).astype(np.uint8)
    result[~np.isfinite(change) | ~(truth >= 0)] = 4
    return result


@styled
def change_overview(
    before,
    after,
    change,
    uncertainty=None,
    truth=None,
    *,
    threshold: float = 0.5,
    quantity: str = "probability of change",
    columns: int = 3,
):
    """Both dates, the change map, its uncertainty and what it got right, side by side.

    Args:
        before, after: pictures [H, W, 3] of floats 0-1, as :func:`rgb_composite` makes with shared limits.
        change: [H, W]; numbers within 0 to 1 are shown on that scale, others from their 2nd to 98th percentile.
        uncertainty: [H, W], expected |error|, or None.
        truth: [H, W], above 0 changed, 0 unchanged, negative or NaN unknown; or None.
        threshold: of ``change``, for the comparison with ``truth``.
        quantity: what ``change`` is.
        columns: panels in a row.

    Raises:
        ValueError: shapes differ.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    change = np.asarray(change, dtype=float)
    given = {"before": before, "after": after, "uncertainty": uncertainty, "truth": truth}
    for name, array in given.items():
        if array is not None and np.shape(array)[:2] != change.shape:
            raise ValueError(
                f"{name}: expected {list(change.shape)} pixels to match change, got {list(np.shape(array)[:2])}"
            )
    count = 3 + (uncertainty is not None) + (truth is not None)
    columns = min(columns, count)
    rows = -(-count // columns)
    width, height = map_size(change.shape, 3.4, beside=0.9)
    fig = new_figure(width * columns, height * rows, layout="compressed")
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    draw_picture(axes[0], before, "before")
    draw_picture(axes[1], after, "after")
    limits = value_limits(change, (0.0, 100.0))
    limits = (0.0, 1.0) if limits[0] >= 0 and limits[1] <= 1 else value_limits(change)
    draw_continuous(axes[2], change, "change", quantity, limits=limits, colormap=COLORMAPS["change"])
    if uncertainty is not None:
        draw_continuous(
            axes[3],
            uncertainty,
            "uncertainty",
            "expected |error|",
            limits=uncertainty_limits(np.asarray(uncertainty, dtype=float)),
            colormap=COLORMAPS["uncertainty"],
        )
    if truth is not None:
        result = outcomes(change, truth, threshold)
        table = np.array([to_rgb(color) for _, color in OUTCOMES])
        draw_picture(axes[count - 1], table[result], f"against the truth, at {threshold:g}")
        handles = [
            Patch(facecolor=color, edgecolor=MASKED, linewidth=0.6, label=f"{name} ({np.sum(result == number):,})")
            for number, (name, color) in enumerate(OUTCOMES)
            if (result == number).any()
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize="x-small", handlelength=1)
    return fig
