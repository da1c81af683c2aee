"""A scene as another sensor would see it: Gaussian responses, bands in any order, gaps not bridged.

Between its band centers a source spectrum is taken as linear, so that the integral with a Gaussian has a closed form.
What the source's own bands have already smoothed is not smoothed again: a response of FWHM t over source bands of FWHM
s is a Gaussian of FWHM sqrt(t^2 - s^2), which becomes interpolation where t is not larger than s.
"""

from __future__ import annotations

import math

import numpy as np

from specfast.data.spacing import estimate_fwhm
from specfast.errors import DataError

_SIGMAS_PER_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))
_SHARPEST = 1e-9  # nm; the limit of interpolation
_REACH = 0.75  # how many FWHM a target's center may lie from the nearest source band
_WEIGHTS_OF_NOTE = 1e-3


def resample(image_or_cube, source_wavelength, source_fwhm, target_wavelength, target_fwhm) -> np.ndarray:
    """Return the cube at the target's bands.

    Args:
        image_or_cube: [C, H, W] (or [C, ...]), or a SpectralImage, of which the good bands are used; its own tables
            apply then, and both source tables are None.
        source_wavelength: [C] nm, in any order.
        source_fwhm: [C] nm, or None to take the bands' spacing.
        target_wavelength, target_fwhm: [D] nm, in the order wanted.

    Returns:
        float32 [D, H, W]; NaN where a source band that matters is not finite.

    Raises:
        DataError: shapes do not agree, or target bands lie outside the source's bands or in their gaps; which these are
            is told by :func:`covered_bands`.
    """
    if hasattr(image_or_cube, "good_bands"):
        image = image_or_cube
        if source_wavelength is not None or source_fwhm is not None:
            raise DataError("source_wavelength, source_fwhm: a SpectralImage brings its own; pass None for both")
        if image.wavelength is None:
            raise DataError(f"{image.name}: wavelength unknown; pass wavelength=[...] when opening it")
        good = np.flatnonzero(image.good_bands)
        cube, source_wavelength = image.read(bands=good), image.wavelength[good]
        source_fwhm = None if image.fwhm is None else image.fwhm[good]
    else:
        cube = np.asarray(image_or_cube)
    if cube.ndim < 1 or len(cube) != len(source_wavelength):
        raise DataError(f"source_wavelength: has {len(source_wavelength)} bands, the cube has shape {cube.shape}")
    covered = covered_bands(source_wavelength, source_fwhm, target_wavelength, target_fwhm)
    if not covered.all():
        wrong = np.flatnonzero(~covered)
        first = float(np.asarray(target_wavelength)[wrong[0]])
        raise DataError(
            f"target_wavelength: {len(wrong)} of {len(covered)} bands are not covered by the source, the first is band "
            f"{wrong[0]} at {first:g} nm; choose with specfast.data.covered_bands(...)"
        )
    weights = response_weights(source_wavelength, source_fwhm, target_wavelength, target_fwhm).astype(np.float32)
    flat = cube.reshape(len(cube), -1).astype(np.float32)
    missing = ~np.isfinite(flat)
    if missing.any():
        flat[missing] = 0
        result = weights @ flat
        result[((weights > _WEIGHTS_OF_NOTE).astype(np.float32) @ missing.astype(np.float32)) > 0] = np.nan
    else:
        result = weights @ flat
    return result.reshape(len(weights), *cube.shape[1:])


def covered_bands(source_wavelength, source_fwhm, target_wavelength, target_fwhm) -> np.ndarray:
    """Return bool [D]: whether a source band lies within three quarters of an FWHM of the target band's center.

    The wider of both FWHM counts. Arguments as in :func:`resample`.
    """
    source, widths = _tables(source_wavelength, source_fwhm, "source")
    target, target_widths = _tables(target_wavelength, target_fwhm, "target")
    distance = np.abs(target[:, None] - source)
    return (distance <= _REACH * np.maximum(widths, target_widths[:, None])).any(axis=1)


def response_weights(source_wavelength, source_fwhm, target_wavelength, target_fwhm) -> np.ndarray:
    """Return float64 [D, C], rows that sum to one: target = weights @ source. Arguments as in :func:`resample`."""
    source, widths = _tables(source_wavelength, source_fwhm, "source")
    target, target_widths = _tables(target_wavelength, target_fwhm, "target")
    nodes, node_of, repeats = np.unique(source, return_inverse=True, return_counts=True)
    if len(nodes) == 1:
        return np.full((len(target), len(source)), 1 / len(source))
    node_widths = np.bincount(node_of, widths) / repeats
    width = np.sqrt(np.clip(target_widths**2 - np.interp(target, nodes, node_widths) ** 2, 0, None))
    sigma = np.maximum(width * _SIGMAS_PER_FWHM, _SHARPEST)[:, None]
    z = (nodes - target[:, None]) / sigma
    below = _normal_cdf(z)  # [D, nodes]: share of the response below each node
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    left, right = nodes[:-1], nodes[1:]
    share, slope = np.diff(below), sigma * np.diff(density)
    # Integrals of the response with the two lines that make up a linear piece, one for each of its ends.
    weights = np.zeros_like(below)
    weights[:, 1:] += ((target[:, None] - left) * share - slope) / (right - left)
    weights[:, :-1] += ((right - target[:, None]) * share + slope) / (right - left)
    weights[:, 0] += below[:, 0]
    weights[:, -1] += 1 - below[:, -1]
    return (weights / repeats)[:, node_of]


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return ndtr(z)


def _tables(wavelength, fwhm, what: str) -> tuple[np.ndarray, np.ndarray]:
    wavelength = np.asarray(wavelength, dtype=np.float64)
    if wavelength.ndim != 1 or len(wavelength) == 0 or not np.isfinite(wavelength).all():
        raise DataError(f"{what}_wavelength: expected a list of finite numbers, got shape {wavelength.shape}")
    fwhm = estimate_fwhm(wavelength) if fwhm is None else np.asarray(fwhm, dtype=np.float64)
    if fwhm is None:
        raise DataError(f"{what}_fwhm: one band has no spacing to take it from; pass it")
    if fwhm.shape != wavelength.shape or not (np.isfinite(fwhm) & (fwhm > 0)).all():
        raise DataError(f"{what}_fwhm: expected {len(wavelength)} positive numbers, got shape {fwhm.shape}")
    return wavelength, fwhm
