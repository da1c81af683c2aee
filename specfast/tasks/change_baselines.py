"""Change detectors that use no foundation model: what a trained one has to beat.

Legend: two dates as cubes [H, W, C] and [H, W, D], NaN at invalid pixels; n pixels valid in both.
"""

from __future__ import annotations

import numpy as np

from specfast.batch import SpectralSample
from specfast.data import covered_bands, resample
from specfast.evaluate.baselines import principal_components
from specfast.tasks.anomaly_rx import CONSTANT, spectra

SAME_BANDS = 0.5  # nm
ITERATIONS = 30
CONVERGED = 1e-3  # largest change of a canonical correlation between iterations
RIDGE = 1e-8  # of a standardized band's variance: bands that others determine have no canonical variate of their own
PERFECT = 1e-6  # smallest variance of a difference of unit variates that can be divided by


def aligned_cubes(before: SpectralSample, after: SpectralSample) -> tuple[np.ndarray, np.ndarray]:
    """Return both dates as cubes [H, W, C] with the same bands and the same valid pixels (others NaN), float32.

    Where the bands differ, the date with more of them is resampled to those of the other that it covers.

    Raises:
        ValueError: the sizes differ, or the sensors have no band in common.
    """
    cubes = [spectra(before), spectra(after)]
    if cubes[0].shape[1:] != cubes[1].shape[1:]:
        raise ValueError(
            f"after: expected {cubes[0].shape[1]} x {cubes[0].shape[2]} pixels as in before, "
            f"got {cubes[1].shape[1]} x {cubes[1].shape[2]}"
        )
    tables = [
        (np.asarray(s.wavelength, dtype=np.float64), np.asarray(s.fwhm, dtype=np.float64)) for s in (before, after)
    ]
    if len(cubes[0]) != len(cubes[1]) or np.abs(tables[0][0] - tables[1][0]).max() > SAME_BANDS:
        fine = int(len(cubes[1]) > len(cubes[0]))
        coarse = 1 - fine
        kept = covered_bands(*tables[fine], *tables[coarse])
        if not kept.any():
            raise ValueError("after: no band in common with before, so the spectra cannot be compared")
        cubes[fine] = resample(cubes[fine], *tables[fine], *(table[kept] for table in tables[coarse]))
        cubes[coarse] = cubes[coarse][kept]
    valid = np.isfinite(cubes[0]).all(axis=0) & np.isfinite(cubes[1]).all(axis=0)
    first, second = (np.where(valid, cube, np.nan).astype(np.float32).transpose(1, 2, 0) for cube in cubes)
    return first, second


def change_vector_analysis(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the length of the difference of standardized spectra, float32 [H, W] (Malila 1980).

    Each date is standardized by its own mean and spread, which takes out gain and offset between the dates.
    """
    valid, first, second = _standardized_rows(before, after)
    return _to_map(valid, np.linalg.norm(first - second, axis=1))


def mad(before: np.ndarray, after: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """Return the length of the standardized MAD variates, float32 [H, W]; its square is chi-square distributed.

    Multivariate alteration detection (Nielsen, Conradsen & Simpson 1998) takes the differences of canonical variates,
    which no linear map of a date's bands changes. Reweighted (IR-MAD, Nielsen 2007), pixels count as much as they are
    likely not to have changed, until the canonical correlations stay.

    Args:
        before, after: [H, W, C] and [H, W, D].
        iterations: at most; 1 for plain MAD.

    Raises:
        ValueError: no more valid pixels than bands.
    """
    from scipy.stats import chi2

    valid, first, second = _standardized_rows(before, after)
    if first.shape[1] > second.shape[1]:
        first, second = second, first
    count = first.shape[1]
    if len(first) <= count + second.shape[1]:
        raise ValueError(
            f"before, after: expected more than {count + second.shape[1]} valid pixels (the bands of both dates), "
            f"got {len(first)}"
        )
    weight = np.ones(len(first))
    previous = np.zeros(count)
    for _ in range(iterations):
        correlation, variates = _canonical_differences(first, second, weight)
        spread = 2 * np.clip(1 - correlation, PERFECT, None)
        distance = (variates**2 / spread).sum(axis=1)
        if np.abs(correlation - previous).max() < CONVERGED:
            break
        likely = chi2.sf(distance, count)
        if likely.sum() <= count + second.shape[1]:  # too few pixels would carry the next estimate
            break
        weight, previous = likely, correlation
    return _to_map(valid, np.sqrt(distance))


def _canonical_differences(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return canonical correlations [C] and differences of the unit variates [n, C], under pixel weights [n]."""
    share = weight / weight.sum()
    first, second = first - share @ first, second - share @ second
    cover = [np.linalg.cholesky((x * share[:, None]).T @ x + RIDGE * np.eye(x.shape[1])) for x in (first, second)]
    cross = (first * share[:, None]).T @ second
    whitened = np.linalg.solve(cover[1], np.linalg.solve(cover[0], cross).T).T
    left, correlation, right = np.linalg.svd(whitened, full_matrices=False)
    a = first @ np.linalg.solve(cover[0].T, left)
    b = second @ np.linalg.solve(cover[1].T, right.T)
    return np.clip(correlation, 0, 1), a - b


def stacked_components(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return 30 principal components of both dates and their difference, stacked: float32 [H, W, 30]."""
    return principal_components([np.concatenate([before, after, after - before], axis=2)])[0]


def _standardized_rows(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return valid [H, W], and the valid pixels of both dates as float64 [n, C], each band with mean 0 and spread 1."""
    valid = np.isfinite(before).all(axis=2) & np.isfinite(after).all(axis=2)
    if not valid.any():
        raise ValueError("before, after: no pixel is valid in both")
    rows = []
    for cube in (before, after):
        pixels = cube[valid].astype(np.float64)
        mean, spread = pixels.mean(axis=0), pixels.std(axis=0)
        used = spread > CONSTANT * np.abs(mean)
        rows.append(np.where(used, (pixels - mean) / np.where(used, spread, 1), 0.0))
    return valid, *rows


def _to_map(valid: np.ndarray, values: np.ndarray) -> np.ndarray:
    out = np.full(valid.shape, np.nan, dtype=np.float32)
    out[valid] = values
    return out
