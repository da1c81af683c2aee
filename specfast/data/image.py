"""SpectralImage: one scene, its pixels read when asked for, its metadata complete and in nm and m."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from specfast.attributes import canonical_level
from specfast.batch import SpectralSample, band_without_data, check_bands
from specfast.data import inspection
from specfast.data.cubes import ArrayCube, Cube
from specfast.data.physical import physical
from specfast.data.readers.envi import find_header
from specfast.data.sensors import model_name
from specfast.data.units import checked_table
from specfast.errors import DataError

Window = tuple[int, int, int, int]


class SpectralImage:
    """A hyperspectral scene; make it with :func:`specfast.data.open` or :meth:`from_array`.

    Bands keep the order and the numbers (counted from 0) that they have in the file. Physical values are radiance in
    uW / (cm^2 nm sr) at level L1 and reflectance, 0 to 1, at level L2.

    Attributes:
        shape: (bands, height, width).
        path: the file, or None for an array in memory.
        name: the file's name without its ending, or the name given.
        dtype: NumPy type of the stored numbers.
        reader: name of the format (``"envi"``, ``"mat"``, ...; ``"array"`` in memory).
        wavelength, fwhm: float64 [C] in nm, or None if unknown.
        gsd: ground sampling distance in m, or None if unknown.
        sensor: key of :func:`specfast.data.sensors`, or the name given if it is none of them, or None.
        level: ``"L1"``, ``"L2"`` or None if unknown.
        nodata: stored number that means "no measurement", or None; NaN and infinity always mean that.
        scale, offset: physical = stored / scale + offset; floats, or float64 [C] where a file gives one a band.
        crs: coordinate reference system as text (an EPSG code or WKT), or None.
        transform: (a, b, c, d, e, f) with x = a column + b row + c, y = d column + e row + f for a pixel's upper left
            corner, or None.
    """

    def __init__(
        self,
        cube: Cube,
        *,
        name: str,
        reader: str,
        path: Path | None = None,
        wavelength=None,
        fwhm=None,
        gsd: float | None = None,
        sensor: str | None = None,
        level: str | None = None,
        good_bands=None,
        nodata: float | None = None,
        scale: float | np.ndarray = 1.0,
        offset: float | np.ndarray = 0.0,
        crs: str | None = None,
        transform: Sequence[float] | None = None,
        assumptions: Sequence[str] = (),
        look_at_pixels: bool = False,
    ):
        self._cube = cube
        self.path, self.name, self.reader = path, name, reader
        self.shape = tuple(int(n) for n in cube.shape)
        self.dtype = np.dtype(cube.dtype)
        bands = self.shape[0]
        if 0 in self.shape:
            raise DataError(f"{self._where}: expected at least one band and one pixel, got shape {self.shape}")
        if self.dtype.kind not in "iufb":
            raise DataError(f"{self._where}: expected real numbers, got {self.dtype}")
        self.wavelength = checked_table(wavelength, "wavelength", bands, self._where)
        self.fwhm = checked_table(fwhm, "fwhm", bands, self._where)
        self.gsd = None if gsd is None else float(gsd)
        if self.gsd is not None and not 0 < self.gsd < np.inf:
            raise DataError(f"{self._where}: gsd must be a positive number of m, got {gsd}")
        self.sensor = sensor
        self.level = None if level is None else canonical_level(level)
        self.nodata = None if nodata is None else float(nodata)
        self.scale = self._factor(scale, "scale")
        self.offset = self._factor(offset, "offset")
        if np.any(self.scale == 0):
            raise DataError(f"{self._where}: scale must not be 0 (physical = stored / scale + offset)")
        self.crs = crs
        self.transform = None if transform is None else tuple(float(value) for value in transform)
        good = checked_table(good_bands, "good_bands", bands, self._where)
        self._good_bands = np.ones(bands, dtype=bool) if good is None else good != 0
        self._assumptions = list(assumptions)
        self._to_look_at = look_at_pixels

    @classmethod
    def from_array(
        cls,
        array,
        *,
        wavelength=None,
        fwhm=None,
        gsd: float | None = None,
        sensor: str | None = None,
        level: str | None = None,
        good_bands=None,
        nodata: float | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
        name: str = "array",
    ) -> SpectralImage:
        """Make an image of an array in memory; nothing is guessed.

        Args:
            array: [C, H, W] of real numbers (NumPy, or a CPU tensor); not copied.
            wavelength, fwhm: [C] nm.
            gsd: m.
            sensor: key, alias or any other name.
            level: ``"L1"`` or ``"L2"``.
            good_bands: bool [C]; default all.
            nodata, scale, offset: see the class.

        Raises:
            DataError: the array is not [C, H, W] of real numbers, or a table has another length.
            ValueError: the level is unknown.
        """
        from specfast.data.sensors import find_sensor

        array = np.asarray(array)
        if array.ndim != 3:
            raise DataError(f"{name}: array must be [bands, height, width], got shape {array.shape}")
        known = None if sensor is None else find_sensor(sensor, array.shape[0])
        return cls(
            ArrayCube(array),
            name=name,
            reader="array",
            wavelength=wavelength,
            fwhm=fwhm,
            gsd=gsd,
            sensor=sensor if known is None else known.key,
            level=level,
            good_bands=good_bands,
            nodata=nodata,
            scale=scale,
            offset=offset,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """What it is read from, resolved: the file given, the one with the pixels, an ENVI header; none in memory."""
        if self.path is None:
            return ()
        pixels = Path(getattr(self._cube, "path", self.path))
        header = find_header(pixels) if self.reader == "envi" else None
        return tuple(dict.fromkeys(path.resolve() for path in (self.path, pixels, header) if path is not None))

    @property
    def variable(self) -> str | None:
        """Name of the array in the file, in formats that hold several."""
        return getattr(self._cube, "variable", None)

    @property
    def good_bands(self) -> np.ndarray:
        """Bool [C]: neither marked bad, nor outside the wavelengths a model takes, nor without data.

        The first use reads a few pixels of the file to see which bands hold no data.
        """
        self._look()
        return self._good_bands

    @property
    def assumptions(self) -> list[str]:
        """All that is taken for granted without the file saying it, in words; may read a few pixels, as good_bands."""
        self._look()
        return self._assumptions

    def read(self, window: Window | None = None, bands=None) -> np.ndarray:
        """Return physical values, reading only the window and the bands asked for.

        Args:
            window: (row, column, height, width) inside the image; default all of it.
            bands: band numbers counted from 0, in any order, as a slice, array, list or bool mask [C]; default all
                bands of the file, the bad ones too.

        Returns:
            float32 [c, h, w], contiguous, NaN where a value is nodata or not finite.

        Raises:
            DataError: the window or a band lies outside the image, or the file cannot be read.
        """
        return self._read(window, self._checked_bands(bands))[0]

    def sample(self, window: Window | None = None, bands=None) -> SpectralSample:
        """Return a window as a sample for a model.

        Args:
            window: as in :meth:`read`.
            bands: as in :meth:`read`; default the good bands.

        Returns:
            A SpectralSample with float32 image [c, h, w] and bool valid [h, w]; a pixel without data in any of the
            bands is invalid and holds zeros.

        Raises:
            DataError: wavelength, FWHM, GSD, sensor or level is unknown, a band's wavelength is outside 350-2550 nm, no
                band is left, a band of the whole scene holds no data, or as in :meth:`read`.
        """
        missing = [key for key in ("wavelength", "fwhm", "gsd", "sensor", "level") if getattr(self, key) is None]
        if missing:
            raise DataError(f"{self._where}: {' and '.join(missing)} unknown; {self._cure(missing)}")
        index = np.flatnonzero(self.good_bands) if bands is None else self._checked_bands(bands)
        if len(index) == 0:
            raise DataError(f"{self._where}: none of its {self.shape[0]} bands is good")
        wavelength = torch.from_numpy(self.wavelength[index]).float()
        fwhm = torch.from_numpy(self.fwhm[index]).float()
        try:
            check_bands(wavelength, fwhm, name="in the bands asked for, ")
        except ValueError as error:
            raise DataError(f"{self._where}: {error}") from None
        values, valid = self._read(window, index)
        if not valid.all():
            if window is None:  # a window may lie where one of two detectors saw nothing
                self._check_no_band_is_empty(np.isfinite(values), index)
            np.copyto(values, 0.0, where=~valid)
        image, valid = torch.from_numpy(values), torch.from_numpy(valid)
        return SpectralSample(image, wavelength, fwhm, self.gsd, model_name(self.sensor), self.level, valid)

    def __repr__(self) -> str:
        bands, height, width = self.shape
        facts = [
            f"{bands} bands",
            f"{height} x {width}",
            self.sensor or "sensor unknown",
            self.level or "level unknown",
        ]
        if self.wavelength is not None:
            facts.append(f"{np.nanmin(self.wavelength):.0f}-{np.nanmax(self.wavelength):.0f} nm")
        if self.gsd is not None:
            facts.append(f"{self.gsd:g} m")
        return f"SpectralImage({self.name!r}, {', '.join(facts)})"

    @property
    def _where(self) -> str:
        return self.name if self.path is None else str(self.path)

    def _cure(self, missing: list[str]) -> str:
        example = {
            "wavelength": "wavelength=[...]",
            "fwhm": "fwhm=[...]",
            "gsd": "gsd=30",
            "sensor": 'sensor="enmap" (or "others")',
            "level": 'level="L2"',
        }
        where = "SpectralImage.from_array" if self.path is None else "specfast.data.open"
        return f"pass {', '.join(example[key] for key in missing)} to {where}"

    def _factor(self, value, name: str) -> float | np.ndarray:
        values = np.asarray(value, dtype=np.float64)
        if values.ndim:
            values = checked_table(values, name, self.shape[0], self._where)
        if not np.isfinite(values).all():
            raise DataError(f"{self._where}: {name} must be a finite number, got {value}")
        return values if values.ndim and len(np.unique(values)) > 1 else float(values.flat[0])

    def _checked_window(self, window: Window | None) -> Window:
        height, width = self.shape[1:]
        if window is None:
            return 0, 0, height, width
        try:
            row, column, h, w = (operator.index(value) for value in window)
        except (TypeError, ValueError):
            raise DataError(f"window: expected four whole numbers (row, column, height, width), got {window}") from None
        if row < 0 or column < 0 or h < 1 or w < 1 or row + h > height or column + w > width:
            raise DataError(
                f"{self._where}: window (row, column, height, width) = {(row, column, h, w)} does not lie inside the "
                f"image of {height} x {width} pixels"
            )
        return row, column, h, w

    def _checked_bands(self, bands) -> np.ndarray:
        count = self.shape[0]
        if bands is None or isinstance(bands, slice):
            return np.arange(count)[bands or slice(None)]
        index = np.asarray(bands)
        if index.dtype == bool:
            if index.shape != (count,):
                raise DataError(f"{self._where}: bands as a mask must have {count} values, got {index.shape}")
            return np.flatnonzero(index)
        if index.size and index.dtype.kind not in "iu":
            raise DataError(f"bands: expected whole numbers, got {index.dtype}")
        index = np.atleast_1d(index).astype(np.intp)
        wrong = index[(index < 0) | (index >= count)]
        if len(wrong) or index.ndim != 1:
            got = f"got {wrong[0]}" if len(wrong) else f"got shape {index.shape}"
            raise DataError(f"{self._where}: bands must be a list of numbers from 0 to {count - 1}, {got}")
        return index

    def _read(self, window: Window | None, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Physical values of a window and bands, and which pixels have one in each of them: see :func:`physical`."""
        row, column, height, width = self._checked_window(window)
        try:
            stored = self._cube.read(slice(row, row + height), slice(column, column + width), index)
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f"{self._where}: cannot be read ({error}); was the file cut off or replaced?") from error
        scale, offset = (
            factor[index] if isinstance(factor, np.ndarray) else factor for factor in (self.scale, self.offset)
        )
        return physical(stored, self.nodata, scale, offset)

    def _check_no_band_is_empty(self, found: np.ndarray, index: np.ndarray) -> None:
        empty = band_without_data(torch.from_numpy(found).flatten(1))
        if empty is not None:
            raise DataError(
                f"{self._where}: band {index[empty]} holds no data, so no pixel would be valid; leave it out by "
                "good_bands or bands"
            )

    def _look(self) -> None:
        if not self._to_look_at:
            return
        pixels = inspection.look(self.read, self.shape)
        empty, notes = inspection.empty_bands(pixels, self._good_bands)
        good = self._good_bands & ~empty
        if np.all(self.scale == 1.0):
            notes += inspection.scale_hint(pixels, good, self.level, self.dtype.kind != "f")
        self._assumptions, self._good_bands, self._to_look_at = [*self._assumptions, *notes], good, False
