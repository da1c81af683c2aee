"""From a cube to an RGB picture: which bands, and which stretch. Legend: C bands, H x W pixels."""

from __future__ import annotations

import numpy as np

RGB_WAVELENGTHS = (650.0, 550.0, 470.0)  # nm, red, green, blue
FALSE_COLOR_WAVELENGTHS = (850.0, 650.0, 550.0)  # nm, near infrared, red, green


def rgb_bands(wavelength, targets=RGB_WAVELENGTHS, tolerance: float = 30.0, good=None) -> tuple[int, int, int]:
    """Return the index of the band nearest to each of three target wavelengths; the order of bands does not matter.

    Args:
        wavelength: [C] nm, in the order of the cube's bands, sorted or not.
        targets: red, green, blue, in nm.
        tolerance: the largest distance in nm that still counts as that color.
        good: [C] bool, bands that may be taken; None for all.

    Raises:
        ValueError: no allowed band lies within ``tolerance`` of a target.
    """
    wavelength = np.asarray(wavelength, dtype=float)
    allowed = np.isfinite(wavelength) if good is None else np.isfinite(wavelength) & np.asarray(good, dtype=bool)
    if wavelength.ndim != 1 or not allowed.any():
        raise ValueError(f"wavelength: expected at least one usable band, got shape {list(wavelength.shape)}")
    bands = []
    for target in targets:
        distance = np.where(allowed, np.abs(wavelength - target), np.inf)
        band = int(np.argmin(distance))
        if distance[band] > tolerance:
            raise ValueError(
                f"wavelength: no band within {tolerance:g} nm of {target:g} nm; the nearest is band {band} "
                f"at {wavelength[band]:g} nm. Give other targets, or a larger tolerance"
            )
        bands.append(band)
    return tuple(bands)


def display_bands(wavelength, good=None) -> tuple[tuple[int, int, int], str]:
    """Return three bands to show as red, green and blue whatever the sensor sees, and what they are in words.

    Natural color where it has all three; else near infrared, red and green; else three bands spread over its range.

    Args:
        wavelength: [C] nm, in any order.
        good: [C] bool, bands that may be taken; None for all.

    Raises:
        ValueError: no allowed band.
    """
    wavelength = np.asarray(wavelength, dtype=float)
    bands, name = None, "false color"
    for targets, known in ((RGB_WAVELENGTHS, "natural color"), (FALSE_COLOR_WAVELENGTHS, "false color")):
        try:
            bands, name = rgb_bands(wavelength, targets, good=good), known
            break
        except ValueError:
            continue
    if bands is None:
        allowed = np.isfinite(wavelength) if good is None else np.isfinite(wavelength) & np.asarray(good, dtype=bool)
        index = np.flatnonzero(allowed)
        if not index.size:
            raise ValueError("wavelength: expected at least one usable band, got none")
        index = index[np.argsort(wavelength[index], kind="stable")]
        bands = tuple(int(index[round(share * (len(index) - 1))]) for share in (5 / 6, 1 / 2, 1 / 6))
    return bands, f"{name} ({', '.join(f'{wavelength[band]:.0f}' for band in bands)} nm)"


def shared_limits(cube, bands, percentiles=(2.0, 98.0), valid=None) -> np.ndarray:
    """Return [3, 2] low and high percentile of the three bands over valid, finite pixels.

    Take the limits once from the input and use them for its reconstruction: otherwise the stretch hides an error of
    brightness.

    Raises:
        ValueError: no pixel is valid.
    """
    values = np.asarray(cube, dtype=np.float32)[list(bands)]
    keep = np.isfinite(values).all(axis=0)
    if valid is not None:
        keep &= np.asarray(valid, dtype=bool)
    if not keep.any():
        raise ValueError("cube: no valid pixel to take a stretch from")
    return np.percentile(values[:, keep], percentiles, axis=1).T


def rgb_composite(
    cube,
    wavelength,
    *,
    targets=RGB_WAVELENGTHS,
    percentiles=(2.0, 98.0),
    limits=None,
    tolerance: float = 30.0,
    good=None,
    valid=None,
) -> np.ndarray:
    """Return a picture [H, W, 3] of floats 0-1 from a cube [C, H, W].

    Args:
        cube: [C, H, W], any unit.
        wavelength, targets, tolerance, good: as :func:`rgb_bands`.
        percentiles: what becomes black and white, each color on its own.
        limits: [3, 2] as :func:`shared_limits` returns, instead of percentiles of this cube.
        valid: [H, W] bool; invalid and non-finite pixels become neutral gray.

    Raises:
        ValueError: shapes do not match, no band is near a target, or no pixel is valid.
    """
    from matplotlib.colors import to_rgb

    from specfast.report.style import MASKED

    cube = np.asarray(cube)
    if cube.ndim != 3 or cube.shape[0] != len(wavelength):
        raise ValueError(f"cube: expected [C={len(wavelength)}, H, W] to match wavelength; got {list(cube.shape)}")
    bands = rgb_bands(wavelength, targets, tolerance, good)
    if limits is None:
        limits = shared_limits(cube, bands, percentiles, valid)
    limits = np.asarray(limits, dtype=np.float32)
    low, span = limits[:, 0], np.maximum(limits[:, 1] - limits[:, 0], np.finfo(np.float32).tiny)
    picture = np.moveaxis(cube[list(bands)].astype(np.float32), 0, -1)
    bad = ~np.isfinite(picture).all(axis=-1)
    if valid is not None:
        bad |= ~np.asarray(valid, dtype=bool)
    picture = np.clip((picture - low) / span, 0.0, 1.0)
    picture[bad] = to_rgb(MASKED)
    return picture


def hide_patches(picture, mask, patch_size: int) -> np.ndarray:
    """Return ``picture`` [H, W, 3] with the patches where ``mask`` [H/p, W/p] is true painted neutral gray."""
    from matplotlib.colors import to_rgb

    from specfast.report.style import MASKED

    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or tuple(n * patch_size for n in mask.shape) != tuple(np.shape(picture)[:2]):
        raise ValueError(
            f"mask: expected [H/p, W/p] with p={patch_size} to match picture {list(np.shape(picture))}; "
            f"got {list(mask.shape)}"
        )
    hidden = np.repeat(np.repeat(mask, patch_size, axis=0), patch_size, axis=1)
    out = np.array(picture, copy=True)
    out[hidden] = to_rgb(MASKED)
    return out
