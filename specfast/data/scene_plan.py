"""A scene before it is cut: its metadata checked, its bands chosen, its tiles placed, nothing read yet."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from specfast.batch import check_bands
from specfast.data import tiling
from specfast.data.image import SpectralImage
from specfast.data.opening import open as open_image
from specfast.data.sensors import sensors
from specfast.data.store_format import SceneRecord
from specfast.errors import DataError


class ScenePlan:
    """One scene to be prepared: checked metadata and tile positions, nothing read yet."""

    def __init__(self, scene: str | os.PathLike | SpectralImage, options: tiling.TilingOptions, open_options: dict):
        self._scene, self._open_options, self.options = scene, open_options, options
        image = self.open()
        self.source = "" if image.path is None else str(Path(image.path).resolve())
        self.name = image.name
        where = self.source or self.name
        short = re.sub(r"[^A-Za-z0-9_.]+", "_", self.name)[:80]
        self.key = f"{short}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        missing = [key for key in ("wavelength", "fwhm", "gsd", "sensor", "level") if getattr(image, key) is None]
        if missing:
            # A known sensor brings its wavelengths and widths.
            flags = dict.fromkeys("sensor" if key in ("wavelength", "fwhm") else key for key in missing)
            raise DataError(
                f"{where}: {', '.join(missing)} not in the file; pass {' '.join(f'--{flag} ...' for flag in flags)} to "
                f"specfast prepare, or from Python an image that has them"
            )
        self.bands, self.notes = _kept_bands(image)
        if len(self.bands) == 0:
            raise DataError(f"{where}: none of its {image.shape[0]} bands is good; nothing to prepare")
        self.wavelength, self.fwhm = image.wavelength[self.bands], image.fwhm[self.bands]
        check_bands(torch.from_numpy(self.wavelength), torch.from_numpy(self.fwhm), name=f"{where}: ")
        self.sensor, self.level, self.gsd = image.sensor, image.level, image.gsd
        self.size = image.shape[1:]
        self.tile = (min(options.tile, self.size[0]), min(options.tile, self.size[1]))
        known = sensors().get(image.sensor)
        published = tiling.MAX_VALUE.get((known and known.attribute, image.level))
        self.maximum = published if options.max_value is None else options.max_value
        self.fingerprint = ""  # of the record as it is without one
        self.fingerprint = self._fingerprint(image)

    def open(self) -> SpectralImage:
        """Return the image, opened anew if the scene was given as a path."""
        if isinstance(self._scene, (str, os.PathLike)):
            return open_image(self._scene, **self._open_options)
        return self._scene

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, col) of every tile, rows first."""
        rows, cols = (tiling.tile_starts(length, self.options.tile, self.options.stride) for length in self.size)
        return [(row, col) for row in rows for col in cols]

    def record(self) -> SceneRecord:
        return SceneRecord(
            name=self.name,
            source=self.source,
            fingerprint=self.fingerprint,
            sensor=self.sensor,
            level=self.level,
            gsd=self.gsd,
            wavelength=self.wavelength.tolist(),
            fwhm=self.fwhm.tolist(),
            bands=self.bands.tolist(),
            size=self.size,
            tile=self.tile,
            notes=list(self.notes),
        )

    def _fingerprint(self, image: SpectralImage) -> str:
        described = {"dtype": str(image.dtype), "nodata": image.nodata}
        described |= {key: np.asarray(getattr(image, key)).tolist() for key in ("scale", "offset")}
        described |= {key: value for key, value in asdict(self.record()).items() if key not in ("notes", "fingerprint")}
        described["maximum"] = self.maximum
        digest = hashlib.sha256(json.dumps(described).encode())
        if self.source:
            source = Path(self.source)
            names = (source.name, source.stem)
            for path in sorted(source.parent.glob(f"{glob.escape(source.stem)}*")):
                # A header beside its data file, or the other way round, belongs to the scene too.
                if path.is_file() and (path.name in names or path.stem in names):
                    stat = path.stat()
                    digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        else:
            for row, col in self.places:
                digest.update(image.read((row, col, *self.tile)).tobytes())
        return digest.hexdigest()[:16]


def _kept_bands(image: SpectralImage) -> tuple[np.ndarray, list[str]]:
    """Return the 0-based numbers of the bands that go into the store, and what was dropped, in words."""
    good, water = image.good_bands, _water_bands(image)
    notes = list(image.assumptions)
    if not good.all():
        notes.append(f"{int((~good).sum())} bands marked bad dropped")
    if water.any():
        notes.append(f"{int((water & good).sum())} water bands of {image.sensor} {image.level} dropped")
    return np.flatnonzero(good & ~water), notes


def _water_bands(image: SpectralImage) -> np.ndarray:
    water = np.zeros(image.shape[0], dtype=bool)
    sensor = sensors().get(image.sensor)
    listed = None if sensor is None else sensor.water_bands.get(image.level)
    if listed is None:
        return water
    if len(sensor) == len(water):
        water[listed] = True
        return water
    # A file with a part of the sensor's bands: each takes the fate of the nearest band of the full table.
    nearest = np.abs(image.wavelength[:, None] - sensor.wavelength[None]).argmin(axis=1)
    return np.isin(nearest, listed)
