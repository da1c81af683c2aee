"""A look at a few pixels of a file: bands that hold nothing, and numbers that look unscaled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_SIDE = 8  # pixels of a window
_ENOUGH = 128  # pixels with data, after which no more windows are read
_FEWEST = 16  # pixels with data, below which nothing is concluded
# Reflectance is 0 to 1 and radiance of the sunlit Earth below some 100 uW / (cm^2 nm sr).
_HIGHEST = {"L1": 1000.0, "L2": 10.0}


def look(read: Callable[[tuple[int, int, int, int]], np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Return a few pixels [C, n] that hold data in any band, from the middle first.

    Args:
        read: returns physical values [C, h, w] of a window (row, column, height, width), NaN where there is no data.
        shape: (bands, height, width).
    """
    _, height, width = shape
    h, w = min(_SIDE, height), min(_SIDE, width)
    found, total = [np.zeros((shape[0], 0), dtype=np.float32)], 0
    places = [(y, x) for y in (0.5, 0.2, 0.8, 0.0, 1.0) for x in (0.5, 0.2, 0.8, 0.0, 1.0)]
    for row, column in dict.fromkeys((round(y * (height - h)), round(x * (width - w))) for y, x in places):
        pixels = read((row, column, h, w)).reshape(shape[0], -1)
        pixels = pixels[:, np.isfinite(pixels).any(axis=0)]
        found.append(pixels)
        total += pixels.shape[1]
        if total >= _ENOUGH:
            break
    return np.concatenate(found, axis=1)


def empty_bands(pixels: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return which of the good bands hold no data or one and the same number in all pixels [C, n], and say so.

    Nothing is concluded from fewer than 16 pixels, or where most bands are constant.
    """
    empty = np.zeros(len(good), dtype=bool)
    if pixels.shape[1] < _FEWEST:
        return empty, []
    finite = np.isfinite(pixels)
    no_data = good & ~finite.any(axis=1)
    low = np.where(finite, pixels, np.inf).min(axis=1)
    high = np.where(finite, pixels, -np.inf).max(axis=1)
    constant = good & (finite.sum(axis=1) >= _FEWEST) & (low == high)
    notes = []
    if no_data.any() and not no_data[good].all():
        empty |= no_data
        notes.append(f"bands {ranges(no_data)} hold no data in {pixels.shape[1]} pixels looked at: taken as bad")
    if constant.any() and constant[good].mean() < 0.5:
        empty |= constant
        values = ", ".join(f"{value:g}" for value in np.unique(low[constant])[:3])
        notes.append(f"bands {ranges(constant)} hold one value ({values}) in all pixels looked at: taken as bad")
    return empty, notes


def scale_hint(pixels: np.ndarray, good: np.ndarray, level: str | None, integer: bool) -> list[str]:
    """Return a hint where values cannot be in physical units though no scale was given."""
    values = pixels[good]
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return []
    peak = float(np.quantile(values, 0.999))
    if peak <= _HIGHEST.get(level, 1000.0 if not integer else 10.0):
        return []
    what = {"L1": "radiance", "L2": "reflectance (0 to 1)"}.get(level, "physical units")
    cure = "pass scale=10000 if it is reflectance times 10000" if level != "L1" else "pass the product's scale="
    return [f"scale: none given, but values up to {peak:.4g} are hardly {what}: {cure}"]


def ranges(bands: np.ndarray) -> str:
    """Write a mask [C] as band numbers counted from 0: ``"0, 5-9"``."""
    numbers = np.flatnonzero(bands)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
