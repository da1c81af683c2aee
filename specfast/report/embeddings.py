"""Embeddings as pictures: their three strongest principal components as red, green and blue.

Legend: E numbers a pixel, h x w pixels or patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MOST = 8192  # vectors that a fit uses, evenly taken: enough for three components, whatever the scene's size


@dataclass(frozen=True)
class PcaColors:
    """Colors of embedding vectors; fit on a sample of a scene, then applied block by block.

    Attributes:
        mean: float64 [E].
        axes: float64 [3, E], orthonormal, strongest first; the largest loading of each is positive, so that the same
            embeddings have the same colors on every machine.
        limits: float64 [3, 2], scores that become 0 and 1.
        explained: float64 [3], share of the variance along each axis.
    """

    mean: np.ndarray
    axes: np.ndarray
    limits: np.ndarray
    explained: np.ndarray

    @classmethod
    def fit(cls, vectors, percentiles=(2.0, 98.0)) -> PcaColors:
        """Find the axes and the stretch.

        Args:
            vectors: [n, E], E of at least 3; rows with a NaN or infinity do not count.
            percentiles: of the scores along each axis, that become 0 and 1.

        Raises:
            ValueError: not [n, E >= 3], or fewer than two finite rows.
        """
        from scipy.linalg import eigh

        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] < 3:
            raise ValueError(f"vectors: expected [n, E] with E of at least 3, got shape {list(vectors.shape)}")
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if len(vectors) < 2:
            raise ValueError(f"vectors: expected at least 2 finite rows, got {len(vectors)}")
        vectors = vectors[np.linspace(0, len(vectors) - 1, min(_MOST, len(vectors))).round().astype(int)]
        mean = vectors.mean(axis=0, dtype=np.float64)
        centered = vectors - mean
        covariance = centered.T @ centered / len(vectors)
        size = len(mean)
        variance, axes = eigh(covariance, subset_by_index=[size - 3, size - 1])
        axes = axes.T[::-1]
        strongest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(3), strongest])[:, None]
        limits = np.percentile(centered @ axes.T, percentiles, axis=0).T
        total = max(float(np.trace(covariance)), np.finfo(float).tiny)
        return cls(mean, np.ascontiguousarray(axes), limits, np.maximum(variance[::-1], 0.0) / total)

    def __call__(self, embedding) -> np.ndarray:
        """Return a picture [h, w, 3] of floats 0-1 of an embedding [E, h, w]; not finite pixels are neutral gray.

        Raises:
            ValueError: another E than was fit.
        """
        from matplotlib.colors import to_rgb

        from specfast.report.style import MASKED

        embedding = np.asarray(embedding)
        if embedding.ndim != 3 or len(embedding) != len(self.mean):
            raise ValueError(f"embedding: expected [{len(self.mean)}, h, w], got shape {list(embedding.shape)}")
        missing = ~np.isfinite(embedding).all(axis=0)
        vectors = np.moveaxis(embedding, 0, -1)[~missing] - self.mean
        low, high = self.limits.T
        picture = np.empty((*missing.shape, 3))
        # along an axis without spread every pixel has the middle color
        span = np.where(high > low, high - low, 1.0)
        picture[~missing] = np.clip(np.where(high > low, (vectors @ self.axes.T - low) / span, 0.5), 0.0, 1.0)
        picture[missing] = to_rgb(MASKED)
        return picture


def pca_rgb(embedding, percentiles=(2.0, 98.0)) -> np.ndarray:
    """Return a picture [h, w, 3] of floats 0-1: an embedding's three strongest principal components, each stretched.

    Args:
        embedding: [E, h, w], E of at least 3; pixels with a NaN are neutral gray and do not count.
        percentiles: of each component, that become 0 and 1.

    Raises:
        ValueError: not [E >= 3, h, w], or fewer than two finite pixels.
    """
    embedding = np.asarray(embedding)
    if embedding.ndim != 3:
        raise ValueError(f"embedding: expected [E, h, w], got shape {list(embedding.shape)}")
    return PcaColors.fit(embedding.reshape(len(embedding), -1).T, percentiles)(embedding)
