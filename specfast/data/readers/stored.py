"""What a reader is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from specfast.data.cubes import Cube


@dataclass(frozen=True)
class Request:
    """What the caller knows of the file.

    Attributes:
        variable: name of the cube, in formats that hold several.
        band_counts: numbers of bands that the caller's tables have; they tell the axis of the bands.
        likely_counts: numbers of bands that the caller's sensor has; a product may hold fewer.
    """

    variable: str | None = None
    band_counts: tuple[int, ...] = ()
    likely_counts: tuple[int, ...] = ()


@dataclass
class StoredScene:
    """A scene as its file describes it; None means that the file does not say.

    Attributes:
        cube: the pixels.
        wavelength, fwhm: [C] in the file's unit.
        unit: of both, as the file names it.
        good_bands: [C], 0 marks a bad band.
        nodata, scale, offset, gsd, crs, transform: as in SpectralImage; scale and offset may be [C].
        radiance_factor: what physical values are multiplied with to be in uW / (cm^2 nm sr), if they are radiance.
        sensor: as the file names it.
        level: ``"L1"`` or ``"L2"``.
        notes: what was assumed, in words.
    """

    cube: Cube
    wavelength: np.ndarray | None = None
    fwhm: np.ndarray | None = None
    unit: str | None = None
    good_bands: np.ndarray | None = None
    nodata: float | None = None
    scale: float | np.ndarray | None = None
    offset: float | np.ndarray | None = None
    radiance_factor: float = 1.0
    gsd: float | None = None
    sensor: str | None = None
    level: str | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    notes: list[str] = field(default_factory=list)
