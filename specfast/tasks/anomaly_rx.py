"""Global RX and RX on principal components.

Legend: C bands (or features) of a pixel, h x w pixels of a window, n pixels of a block.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from specfast.batch import SpectralSample
from specfast.tasks.moments import ROWS_AT_ONCE, Moments, moments_of

CONSTANT = 1e-7  # a band whose spread is below this share of its mean holds rounding errors of float32
SINGULAR = 1e-10  # smallest share of a band's variance that the bands before it must leave unexplained
NO_FACTOR = 1e-14  # the same, below which rounding alone decides
LOADING = 1e-8  # added to the correlation matrix's diagonal where that is not so
_BLOCKS = 4  # of rows of a triangular matrix: most products with its zeros are left out


def spectra(sample: SpectralSample) -> np.ndarray:
    """Return a sample's image, float32 [C, h, w], NaN where a pixel is invalid; where none is, in the same memory."""
    image = torch.as_tensor(sample.image).float().numpy()
    valid = np.isfinite(image).all(axis=0)
    if sample.valid is not None:
        valid &= torch.as_tensor(sample.valid).bool().numpy()
    return image if valid.all() else np.where(valid, image, np.float32(np.nan))


class GlobalRX:
    """The squared Mahalanobis distance of a pixel from the scene's mean (Reed & Yu 1990).

    It is the length of the pixel's whitened spectrum: the inverse of the Cholesky factor of the correlation matrix,
    whose condition is the root of the matrix's, times the standardized bands. The distance does not change under
    invertible linear maps of the bands, so standardizing changes nothing but the conditioning.
    Constant bands are left out: they tell pixels apart nowhere.

    Args:
        shrinkage: weight of the identity in the correlation matrix, 0 to 1; ``"oas"`` takes the oracle approximating
            shrinkage of Chen et al. (2010). None: no shrinkage where the matrix has full rank; with fewer pixels than
            bands ``"oas"``; with bands that others determine (duplicates, smoothed spectra) :data:`LOADING`.

    Attributes:
        shrinkage: what was asked for; ``shrinkage_`` is what ``fit`` used.
        mean: float64 [C].
    """

    needs_model = ""
    margin = 0
    prepare = staticmethod(spectra)

    def __init__(self, shrinkage: float | str | None = None):
        if shrinkage is not None and shrinkage != "oas" and not (_is_number(shrinkage) and 0 <= shrinkage <= 1):
            raise ValueError(f"shrinkage: expected None, 'oas' or a number from 0 to 1; got {shrinkage!r}")
        self.shrinkage = shrinkage

    def fit(self, blocks: Iterable[np.ndarray]) -> GlobalRX:
        """Learn the background from blocks of pixels, each [n, C]; pixels with NaN are left out.

        Raises:
            ValueError: blocks differ in C, fewer than two pixels are finite, all are alike, or the matrix has no
                Cholesky factor with the shrinkage asked for.
        """
        from scipy.linalg import solve_triangular

        moments = moments_of(blocks)
        covariance = moments.covariance
        self.mean = moments.mean
        spread = np.sqrt(covariance.diagonal())
        used = np.flatnonzero(spread > CONSTANT * np.abs(self.mean))
        if not len(used):
            raise ValueError("blocks: all pixels are alike, so none is an anomaly")
        spread = spread[used]
        correlation = covariance[np.ix_(used, used)] / np.outer(spread, spread)
        self.shrinkage_, factor = _factorized(correlation, moments.count, self.shrinkage)
        whitening = np.zeros((len(used), len(self.mean)))
        whitening[:, used] = solve_triangular(factor, np.eye(len(used)), lower=True, check_finite=False) / spread
        rows = [part for part in np.array_split(np.arange(len(used)), _BLOCKS) if len(part)]
        # beyond the last row's own band a block of rows is zero
        self._whitening = [np.ascontiguousarray(whitening[part, : used[part[-1]] + 1]) for part in rows]
        return self

    def score(self, cube: np.ndarray) -> np.ndarray:
        """Return float32 [h, w] of a cube [C, h, w]; NaN where a band is not finite.

        Raises:
            ValueError: another number of bands than ``fit`` saw.
        """

        def distances(pixels):
            away = pixels - self.mean[:, None]
            return sum(_squared_length(block @ away[: block.shape[1]]) for block in self._whitening)

        return scored(cube, len(self.mean), distances)


class PCARX:
    """RX on the leading principal components of the covariance: noise in the last ones has no say.

    Args:
        components: how many to keep; fewer where the pixels span fewer.
    """

    needs_model = ""
    margin = 0
    prepare = staticmethod(spectra)

    def __init__(self, components: int = 10):
        if components < 1:
            raise ValueError(f"components: expected at least 1, got {components}")
        self.components = components

    def fit(self, blocks: Iterable[np.ndarray]) -> PCARX:
        """Learn mean and axes from blocks of pixels, each [n, C]; arguments and errors as of :meth:`GlobalRX.fit`."""
        moments = moments_of(blocks)
        self.mean = moments.mean
        self._axes = whitening_axes(moments, self.components)
        return self

    def score(self, cube: np.ndarray) -> np.ndarray:
        """Return float32 [h, w] of a cube [C, h, w]; as :meth:`GlobalRX.score`."""
        return scored(
            cube, len(self.mean), lambda pixels: _squared_length(self._axes.T @ (pixels - self.mean[:, None]))
        )


def whitening_axes(moments: Moments, components: int) -> np.ndarray:
    """Return float64 [C, k], k <= components: principal axes, each divided by the spread along it.

    Raises:
        ValueError: fewer than two pixels, or all are alike.
    """
    variance, axes = np.linalg.eigh(moments.covariance)
    variance, axes = variance[::-1][:components], axes[:, ::-1][:, :components]
    kept = variance > max(SINGULAR * variance[0], CONSTANT**2 * float(moments.mean @ moments.mean))
    if not kept.any():
        raise ValueError("blocks: all pixels are alike, so none is an anomaly")
    return axes[:, kept] / np.sqrt(variance[kept])


def oas_shrinkage(correlation: np.ndarray, count: int) -> float:
    """Return the weight of the identity that the oracle approximating shrinkage gives a matrix of ``count`` pixels.

    Source: Chen, Wiesel, Eldar & Hero (2010), IEEE Trans. Signal Process. 58(10), equation 23.
    """
    size = len(correlation)
    squares, trace = float((correlation**2).sum()), float(correlation.trace())
    above = (1 - 2 / size) * squares + trace**2
    below = (count + 1 - 2 / size) * (squares - trace**2 / size)
    return 1.0 if below <= 0 else min(1.0, above / below)


def scored(cube: np.ndarray, bands: int, distances) -> np.ndarray:
    """Apply ``distances`` ([C, n] -> float64 [n]) to the valid pixels of a cube [C, h, w]: float32 [h, w], else NaN.

    Raises:
        ValueError: the cube does not have ``bands`` bands.
    """
    cube = np.asarray(cube)
    if cube.ndim != 3 or len(cube) != bands:
        raise ValueError(f"cube: expected [{bands}, h, w] as fitted, got shape {list(cube.shape)}")
    flat = cube.reshape(bands, -1)
    out = np.full(flat.shape[1], np.nan, dtype=np.float32)
    for start in range(0, flat.shape[1], ROWS_AT_ONCE):
        part = flat[:, start : start + ROWS_AT_ONCE]
        valid = np.isfinite(part).all(axis=0)
        out[start : start + ROWS_AT_ONCE][valid] = distances(part if valid.all() else part[:, valid])
    return out.reshape(cube.shape[1:])


def _squared_length(vectors: np.ndarray) -> np.ndarray:
    """Return [n] of vectors [k, n]."""
    return np.einsum("kn,kn->n", vectors, vectors)


def _factorized(correlation: np.ndarray, count: int, shrinkage) -> tuple[float, np.ndarray]:
    """Return the shrinkage used and the lower Cholesky factor [C, C] of the shrunk matrix."""
    if shrinkage is None:
        shrinkage = 0.0
        if count <= len(correlation):
            shrinkage = "oas"
        elif _cholesky(correlation, SINGULAR) is None:
            shrinkage = LOADING
    if shrinkage == "oas":
        shrinkage = oas_shrinkage(correlation, count)
    shrunk = (1 - shrinkage) * correlation
    shrunk[np.diag_indices_from(shrunk)] += shrinkage
    factor = _cholesky(shrunk, NO_FACTOR)
    if factor is None:
        raise ValueError(
            f"shrinkage: {shrinkage:g} leaves the bands' correlation matrix singular; ask for more or None"
        )
    return float(shrinkage), factor


def _cholesky(matrix: np.ndarray, least: float) -> np.ndarray | None:
    """Return the lower factor, or None if there is none or a band keeps less than ``least`` of variance of its own."""
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    return factor if factor.diagonal().min() ** 2 >= least else None


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
