"""Embeddings: three principal components as colors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specfast.errors import DataError
from specfast.report.embeddings import PcaColors
from specfast.report.maps import picture_row
from specfast.report.pages.exhibit import Exhibit, Picture, Section
from specfast.report.pages.scene import composite
from specfast.report.sources import Source, step_for, strips, thinned, thinning_note

_SAMPLE = 96  # pixels of each side that the axes are found from


def exhibit(
    source: Source,
    *,
    stretch: Sequence[float] = (2.0, 98.0),
    window: tuple[int, int, int, int] | None = None,
    others: Sequence[tuple[str, Source]] = (),
) -> Exhibit:
    """Show an embedding, beside its scene or another embedding in the same colors.

    Args:
        source: [E, h, w].
        stretch: percentiles of each component that become black and white.
        window: (row, column, height, width) to show; None for all.
        others: (kind, source) of what is shown beside it: scenes (of any size, as patches are larger than pixels), and
            embeddings of equally many numbers.

    Raises:
        DataError: too few channels or pixels, or something else is to be shown beside it.
    """
    image = source.image
    if image.shape[0] < 3:
        raise DataError(f"{image.path}: has {image.shape[0]} channels; expected at least 3 to show as colors")
    for kind, other in others:
        if kind not in ("scene", "embedding"):
            raise DataError(f"{other.image.path}: is of kind {kind}; beside an embedding a scene or another is shown")
        if kind == "embedding" and other.image.shape[0] != image.shape[0]:
            raise DataError(f"{other.image.path}: has {other.image.shape[0]} channels; expected {image.shape[0]}")
    size = image.shape[1:] if window is None else window[2:]
    sample = thinned(image, window=window, step=step_for(size, _SAMPLE)).reshape(image.shape[0], -1).T
    if np.isfinite(sample).all(axis=1).sum() < 2:
        raise DataError(f"{image.path}: fewer than two of the pixels looked at hold an embedding")
    colors = PcaColors.fit(sample, tuple(stretch))
    pictures = [(image.name, _colored(source, colors, window))]
    for kind, other in others:
        if kind == "scene":
            pictures.append((other.image.name, composite(other.image, stretch=stretch)[0]))
        else:
            pictures.append((other.image.name, _colored(other, colors, window)))
    shares = ", ".join(f"{100 * share:.0f}%" for share in colors.explained)
    caption = (
        f"Red, green and blue are the three strongest of {image.shape[0]} principal components, with {shares} of the "
        "variance. Like colors mean like features; the colors themselves mean nothing."
    )
    caption += thinning_note(step_for(size))
    if len(pictures) > 1 and any(kind == "embedding" for kind, _ in others):
        caption += f" All embeddings are shown on the axes of {image.name}."
    picture = Picture(picture_row(pictures), caption, f"Embedding of {image.name} as colors.")
    summary = {
        "shape": list(image.shape),
        "crs": image.crs,
        "explained": [float(share) for share in colors.explained],
    }
    subtitle = f"{image.shape[0]} numbers a cell, {image.shape[1]} x {image.shape[2]} cells"
    return Exhibit("embedding", image.name, subtitle, [Section("Embedding", pictures=[picture])], summary)


def _colored(source: Source, colors: PcaColors, window) -> np.ndarray:
    """Return [h, w, 3], read by strips: an embedding is too large to hold."""
    step = step_for(source.image.shape[1:] if window is None else window[2:])
    return np.concatenate([colors(strip) for strip in strips(source.image, window=window, step=step)])
