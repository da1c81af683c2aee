"""FWHM from band spacing, for tables that have none: bands in any order, detectors that overlap."""

from __future__ import annotations

import numpy as np

_REACH = 3  # bands to either side that make the neighborhood


def estimate_fwhm(wavelength: np.ndarray) -> np.ndarray | None:
    """Return each band's distance to its neighbors in nm [C], or None for a single band.

    Where detectors follow one another, their wavelengths may jump back: spacing is measured within each run. The mean
    of both sides is taken; where they differ by more than a half (a gap left by dropped bands, a stray band between
    detectors), the side that is more like the neighborhood's, or the neighborhood's median if both are unlike it.
    Bands in no order at all are measured in sorted order.
    """
    wavelength = np.asarray(wavelength, dtype=np.float64)
    if len(np.unique(wavelength)) < 2:
        return None
    steps = np.diff(wavelength)
    for direction in (1.0, -1.0):
        if (steps * direction > 0).mean() >= 0.8:
            runs = np.split(np.arange(len(wavelength)), np.flatnonzero(steps * direction <= 0) + 1)
            break
    else:
        runs = [np.argsort(wavelength, kind="stable")]
    widths = np.full(len(wavelength), np.nan)
    for run in runs:
        gaps = np.abs(np.diff(wavelength[run]))
        gaps[gaps == 0] = np.nan
        left, right = np.concatenate([[np.nan], gaps]), np.concatenate([gaps, [np.nan]])
        near, far = np.fmin(left, right), np.fmax(left, right)
        usual = np.array([_median(gaps[max(0, n - _REACH) : n + _REACH]) for n in range(len(run))])
        side = np.where(far * near < usual**2, far, near)  # the one whose ratio to the median is smaller
        width = np.where(far <= 1.5 * near, (near + far) / 2, side)
        widths[run] = np.where((width > usual / 2) & (width < usual * 2), width, usual)
    # A band alone in its run, or beside its double, takes the width of the nearest band that has one.
    for band in np.flatnonzero(np.isnan(widths)):
        known = np.flatnonzero(~np.isnan(widths))
        widths[band] = widths[known[np.abs(wavelength[known] - wavelength[band]).argmin()]]
    return widths


def _median(gaps: np.ndarray) -> float:
    gaps = gaps[~np.isnan(gaps)]
    return float(np.median(gaps)) if len(gaps) else np.nan
