"""Local RX: a pixel against its own surroundings."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from specfast.tasks.anomaly_rx import CONSTANT, spectra
from specfast.tasks.moments import moments_of

PIXELS_AT_ONCE = 32  # bounds the copies of neighborhoods


class LocalRX:
    """The squared Mahalanobis distance of a pixel from a ring of pixels around it.

    The ring lies between two squares; the inner one keeps the anomaly itself out of its background. Correlations are
    estimated from few pixels, so they are always shrunk, each ring's by the oracle approximating shrinkage (Chen et al.
    2010). Beyond the scene's edge and at invalid pixels the ring has fewer pixels.

    Args:
        inner, outer: sides of the squares in pixels, odd, inner < outer.

    Attributes:
        margin: pixels around a window that its scores depend on.
    """

    needs_model = ""
    prepare = staticmethod(spectra)

    def __init__(self, inner: int = 5, outer: int = 21):
        if inner % 2 == 0 or outer % 2 == 0 or not 1 <= inner < outer:
            raise ValueError(f"inner, outer: expected odd numbers of pixels, inner < outer; got {inner} and {outer}")
        self.inner, self.outer = inner, outer
        self.margin = outer // 2

    def fit(self, blocks: Iterable[np.ndarray]) -> LocalRX:
        """Learn the bands' mean and spread, which make them comparable, from blocks of pixels, each [n, C].

        Raises:
            ValueError: blocks differ in C, fewer than two pixels are finite, or all are alike.
        """
        moments = moments_of(blocks)
        spread = np.sqrt(moments.covariance.diagonal())
        used = spread > CONSTANT * np.abs(moments.mean)
        if not used.any():
            raise ValueError("blocks: all pixels are alike, so none is an anomaly")
        self.mean, self._used, self._spread = moments.mean, used, spread[used, None, None]
        return self

    def score(self, cube: np.ndarray) -> np.ndarray:
        """Return float32 [h, w] of a cube [C, h, w]; NaN where a band is not finite or the ring has under two pixels.

        Raises:
            ValueError: another number of bands than ``fit`` saw.
        """
        cube = np.asarray(cube)
        if cube.ndim != 3 or len(cube) != len(self.mean):
            raise ValueError(f"cube: expected [{len(self.mean)}, h, w] as fitted, got shape {list(cube.shape)}")
        valid = np.isfinite(cube).all(axis=0)
        standardized = (cube[self._used] - self.mean[self._used, None, None]) / self._spread
        edge = self.margin
        pixels = np.pad(np.where(valid, standardized, 0.0), ((0, 0), (edge, edge), (edge, edge)))
        there = np.pad(valid, edge).astype(np.float64)
        squares = (self.outer, self.outer)
        rings = np.lib.stride_tricks.sliding_window_view(pixels, squares, axis=(1, 2))  # [C, h, w, outer, outer]
        present = np.lib.stride_tricks.sliding_window_view(there, squares)
        ring = np.ones(squares, dtype=bool)
        start = (self.outer - self.inner) // 2
        ring[start : start + self.inner, start : start + self.inner] = False
        out = np.full(valid.shape, np.nan, dtype=np.float32)
        rows, columns = np.nonzero(valid)
        for first in range(0, len(rows), PIXELS_AT_ONCE):
            r, c = rows[first : first + PIXELS_AT_ONCE], columns[first : first + PIXELS_AT_ONCE]
            neighbors = torch.from_numpy(rings[:, r, c][:, :, ring]).permute(1, 2, 0)  # [n, pixels of the ring, C]
            weight = torch.from_numpy(present[r, c][:, ring])
            centers = torch.from_numpy(standardized[:, r, c].T.copy())
            out[r, c] = _distances(centers, neighbors, weight).numpy()
        return out


def _distances(pixels: torch.Tensor, neighbors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Distances of pixels [n, C] from neighbors [n, k, C], of which those with weight [n, k] 1 (not 0) count."""
    count = weight.sum(dim=1)
    mean = (neighbors * weight[..., None]).sum(dim=1) / count.clamp_min(1)[:, None]
    centered = (neighbors - mean[:, None]) * weight[..., None]
    covariance = centered.mT @ centered / (count - 1).clamp_min(1)[:, None, None]
    size = covariance.shape[-1]
    trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)
    squares = covariance.square().sum(dim=(1, 2))
    below = (count + 1 - 2 / size) * (squares - trace**2 / size)
    share = ((1 - 2 / size) * squares + trace**2) / below.clamp_min(1e-300)
    share = torch.where(below > 0, share, torch.ones_like(share)).clamp_max(1.0)[:, None, None]
    identity = torch.eye(size, dtype=covariance.dtype)
    # a ring of equal pixels has no spread at all: the floor keeps its distance finite
    level = (trace / size).clamp_min(1e-12)[:, None, None]
    factor = torch.linalg.cholesky((1 - share) * covariance + share.clamp_min(1e-8) * level * identity)
    away = torch.linalg.solve_triangular(factor, (pixels - mean)[..., None], upper=False)
    return torch.where(count >= 2, away.square().sum(dim=(1, 2)), torch.nan)
