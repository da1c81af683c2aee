"""BandTable: what a model must be told of images that come as bare arrays, always the same bands of one sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specfast.attributes import canonical_level
from specfast.batch import WAVELENGTH_RANGE, SpectralBatch, SpectralSample, check_bands
from specfast.data.sensors import TOLERANCE, Sensor, find_sensor, model_name, sensors
from specfast.data.spacing import estimate_fwhm


@dataclass(frozen=True, eq=False)
class BandTable:
    """The bands of images that come without metadata; make it with :func:`band_table`.

    Attributes:
        wavelength, fwhm: float32 [C] nm, in the order of the image's bands.
        gsd: ground sampling distance in m.
        sensor: the name that describes the sensor to the model.
        level: ``"L1"`` (radiance) or ``"L2"`` (reflectance).
    """

    wavelength: Tensor
    fwhm: Tensor
    gsd: float
    sensor: str
    level: str

    def __len__(self) -> int:
        return len(self.wavelength)

    def batch(self, image: Tensor, valid: Tensor | None = None) -> SpectralBatch:
        """Make a batch of images [B, C, H, W]; ``valid`` bool [B, H, W]. NaN pixels are invalid in any case.

        Raises:
            ValueError: the image has another number of bands, or a band without a single finite value.
        """
        self._check(image, 4)
        return SpectralBatch.from_arrays(image, self.wavelength, self.fwhm, self.gsd, self.sensor, self.level, valid)

    def sample(self, image: Tensor, valid: Tensor | None = None) -> SpectralSample:
        """Make a sample of one image [C, H, W]; ``valid`` bool [H, W].

        Raises:
            ValueError: the image has another number of bands.
        """
        self._check(image, 3)
        return SpectralSample(image, self.wavelength, self.fwhm, self.gsd, self.sensor, self.level, valid)

    @classmethod
    def of(cls, sample: SpectralSample) -> BandTable:
        """Take the table from a sample, as :meth:`SpectralImage.sample` gives it."""
        return cls(sample.wavelength, sample.fwhm, float(sample.gsd), sample.sensor, canonical_level(sample.level))

    def to_dict(self) -> dict:
        """Return plain values, for files beside a model."""
        return {
            "sensor": self.sensor,
            "level": self.level,
            "gsd_m": self.gsd,
            "wavelength_nm": [round(value, 4) for value in self.wavelength.tolist()],
            "fwhm_nm": [round(value, 4) for value in self.fwhm.tolist()],
        }

    def _check(self, image: Tensor, dimensions: int) -> None:
        shape = list(image.shape)
        if len(shape) != dimensions or shape[-3] != len(self):
            expected = ["C", "H", "W"] if dimensions == 3 else ["B", "C", "H", "W"]
            raise ValueError(f"image: expected [{', '.join(expected)}] with C={len(self)} bands; got {shape}")


def band_table(
    sensor: str,
    level: str,
    *,
    gsd: float | None = None,
    bands: Sequence[int] | slice | None = None,
    wavelength: Sequence[float] | None = None,
    fwhm: Sequence[float] | None = None,
) -> BandTable:
    """Make the table of images whose sensor is known.

    Args:
        sensor: a key or alias of :func:`specfast.data.sensors`; with ``wavelength`` and ``gsd``, any name.
        level: ``"L1"`` (radiance) or ``"L2"`` (reflectance).
        gsd: ground sampling distance in m; by default the sensor's, if it does not depend on the flight.
        bands: which bands of the table the images hold, counted from 0 and in their order; by default those that are
            calibrated and lie in 350-2550 nm.
        wavelength: [C] nm; by default the sensor's.
        fwhm: [C] nm; by default the sensor's where its bands are meant, else estimated from the bands' spacing.

    Raises:
        ValueError: the sensor is unknown and something is missing, lengths do not fit, a band number or a wavelength is
            out of range.
    """
    level = canonical_level(level)
    known = find_sensor(sensor, None if wavelength is None else len(wavelength))
    if known is None and wavelength is None:
        raise ValueError(
            f"sensor: {sensor!r} is none of {', '.join(sensors())}; pass wavelength (nm), and gsd (m), for another one"
        )
    centers = known.wavelength if wavelength is None else np.asarray(wavelength, dtype=np.float64)
    widths = _widths(known, centers, fwhm)
    if bands is None and wavelength is None:
        low, high = WAVELENGTH_RANGE
        bands = np.flatnonzero(known.good_bands & (centers >= low) & (centers <= high))
    index = np.arange(len(centers))[bands] if isinstance(bands, slice) else _numbers(bands, len(centers))
    if gsd is None:
        if known is None or known.gsd is None or known.airborne:
            raise ValueError(f"gsd: unknown for {sensor!r}, since it depends on the flight; pass it in m")
        gsd = known.gsd
    table = BandTable(
        wavelength=torch.tensor(centers[index], dtype=torch.float32),
        fwhm=torch.tensor(widths[index], dtype=torch.float32),
        gsd=float(gsd),
        sensor=sensor if known is None else model_name(known.key),
        level=level,
    )
    check_bands(table.wavelength, table.fwhm)
    return table


def _numbers(bands: Sequence[int] | None, count: int) -> np.ndarray:
    if bands is None:
        return np.arange(count)
    index = np.asarray(bands)
    if index.ndim != 1 or index.dtype.kind not in "iu" or not len(index):
        raise ValueError(f"bands: expected a list of band numbers counted from 0, got {bands!r}")
    if index.min() < 0 or index.max() >= count:
        raise ValueError(f"bands: expected numbers from 0 to {count - 1}; got {index.min()} to {index.max()}")
    return index


def _widths(known: Sensor | None, centers: np.ndarray, fwhm: Sequence[float] | None) -> np.ndarray:
    """Return [C] nm: what is given, what the sensor's table says of these bands, or an estimate."""
    if centers.ndim != 1 or not len(centers):
        raise ValueError(f"wavelength: expected a list of numbers in nm, got shape {list(centers.shape)}")
    if fwhm is not None:
        widths = np.asarray(fwhm, dtype=np.float64)
        if widths.shape != centers.shape:
            raise ValueError(f"fwhm: expected {len(centers)} numbers, one a wavelength; got shape {list(widths.shape)}")
        return widths
    if known is not None:
        nearest = np.abs(known.wavelength - centers[:, None]).argmin(axis=1)
        widths = known.fwhm[nearest]
        if np.abs(known.wavelength[nearest] - centers).max() <= TOLERANCE and np.isfinite(widths).all():
            return widths
    estimate = estimate_fwhm(centers)
    if estimate is None:
        raise ValueError("fwhm: cannot be estimated from the spacing of a single band; pass it in nm")
    return estimate
