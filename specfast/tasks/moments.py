"""Mean and covariance of pixels that come block by block, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

ROWS_AT_ONCE = 8192  # bounds the float64 copies, whatever the blocks' size


class Moments:
    """Count, mean and covariance of rows seen so far (updates after Chan, Golub & LeVeque 1983).

    Attributes:
        count: rows without NaN or infinity that were added.
        mean: float64 [F], or None before the first.
    """

    def __init__(self):
        self.count = 0
        self.mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        """Add rows [n, F]; those with a value that is not finite are left out.

        Raises:
            ValueError: not two-dimensional, or another F than before.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or (self.mean is not None and rows.shape[1] != len(self.mean)):
            bands = "F" if self.mean is None else str(len(self.mean))
            raise ValueError(f"blocks: expected pixels by bands [n, {bands}], got shape {list(rows.shape)}")
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            finite = np.isfinite(part).all(axis=1)
            # indexing with a mask would reorder a transposed cube in memory
            part = (part if finite.all() else part[finite]).astype(np.float64)
            if len(part):
                self._add(part)

    def _add(self, part: np.ndarray) -> None:
        """Add finite rows, float64 [n, F]; they are overwritten."""
        mean = part.mean(axis=0)
        part -= mean
        scatter = part.T @ part
        if self.mean is None:
            self.count, self.mean, self._scatter = len(part), mean, scatter
            return
        shift, total = mean - self.mean, self.count + len(part)
        self._scatter += scatter + np.outer(shift, shift) * (self.count * len(part) / total)
        self.mean = self.mean + shift * (len(part) / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Float64 [F, F], unbiased (divided by count - 1).

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"blocks: expected at least two pixels with finite values, got {self.count}")
        return self._scatter / (self.count - 1)


def moments_of(blocks: Iterable[np.ndarray]) -> Moments:
    """Return the moments of all rows of all blocks, each [n, F]."""
    moments = Moments()
    for block in blocks:
        moments.add(block)
    return moments
