"""From stored numbers to physical values: scale, offset, and what holds no measurement."""

from __future__ import annotations

import numpy as np

_NUMBERS_AT_ONCE = 2**20  # what is worked on stays in a processor's cache


def physical(
    stored: np.ndarray, nodata: float | None, scale: float | np.ndarray, offset: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return physical values, stored / scale + offset, and which pixels have one in every band.

    Args:
        stored: real numbers [C, h, w] of any type, in any order in memory.
        nodata: stored number that means "no measurement", or None; NaN and infinity always mean that.
        scale, offset: numbers, or float64 [C].

    Returns:
        float32 [C, h, w], contiguous, NaN where there is no measurement; and bool [h, w].
    """
    values, valid = np.empty(stored.shape, dtype=np.float32), np.empty(stored.shape[1:], dtype=bool)
    bands, height, width = stored.shape
    # 32-bit integers and doubles lose digits that the scaling may still need
    narrow = stored.dtype.itemsize <= 2 or (stored.dtype.kind == "f" and stored.dtype.itemsize == 4)
    step = max(1, _NUMBERS_AT_ONCE // max(1, bands * width))
    for row in range(0, height, step):
        rows = slice(row, row + step)
        part, result = stored[:, rows], values[:, rows]
        scaled = result if narrow else np.empty(part.shape)
        np.copyto(scaled, part, casting="unsafe")
        for factor, neutral, apply in ((scale, 1.0, np.divide), (offset, 0.0, np.add)):
            if isinstance(factor, np.ndarray):
                apply(scaled, factor[:, None, None].astype(scaled.dtype), out=scaled)
            elif factor != neutral:
                apply(scaled, factor, out=scaled)
        if not narrow:
            with np.errstate(over="ignore"):
                result[...] = scaled
        found = np.isfinite(result)
        missing = _is_nodata(part, nodata)
        if missing is not None:
            found &= ~missing
        found.all(axis=0, out=valid[rows])
        if not valid[rows].all():
            np.copyto(result, np.nan, where=~found)
    return values, valid


def _is_nodata(stored: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Return where the stored numbers mean "no measurement"; None if no number of their type can."""
    if nodata is None or not np.isfinite(nodata):
        return None
    if stored.dtype.kind != "f":
        limits = (0, 1) if stored.dtype.kind == "b" else (np.iinfo(stored.dtype).min, np.iinfo(stored.dtype).max)
        fits = nodata == int(nodata) and limits[0] <= nodata <= limits[1]
        return stored == stored.dtype.type(nodata) if fits else None
    # A number such as -0.01 or -1e34 may have passed through single precision before it was stored.
    margin, limits = 1e-6 * abs(nodata), np.finfo(stored.dtype)
    low, high = np.clip([nodata - margin, nodata + margin], float(limits.min), float(limits.max))
    return (stored >= low) & (stored <= high)
