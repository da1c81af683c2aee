"""specfast.data.open: a file's own words, the caller's corrections, and what a sensor's table can add."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from specfast.attributes import canonical_level
from specfast.batch import WAVELENGTH_RANGE
from specfast.data.image import SpectralImage
from specfast.data.readers import read_stored
from specfast.data.readers.header import level_from_text
from specfast.data.readers.stored import Request, StoredScene
from specfast.data.sensors import TOLERANCE, Sensor, find_sensor, sensor_from_file_name, sensor_from_wavelength, sensors
from specfast.data.spacing import estimate_fwhm
from specfast.data.units import checked_table, to_nanometers
from specfast.errors import DataError

_OUT_OF_RANGE = ("raise", "drop", "keep")
_SAYS_NOTHING = ("", "unknown", "none", "n/a", "other", "others")
_LONGEST_NAME = 40  # characters; a longer text in a file is a sentence


def open(
    path: str | os.PathLike,
    *,
    sensor: str | None = None,
    level: str | None = None,
    gsd: float | None = None,
    wavelength=None,
    fwhm=None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    variable: str | None = None,
    out_of_range: str = "raise",
) -> SpectralImage:
    """Open a scene; only its metadata are read.

    Formats: ENVI (header or data file), MATLAB, .npy, GeoTIFF (``pip install "specfast[geo]"``), NetCDF-4 and HDF5
    (``pip install "specfast[hdf]"``), told by content. The arguments correct or add to what the file says; what neither
    says is taken from the sensor's table, or estimated, and then listed in the image's ``assumptions``.

    Args:
        path: the file.
        sensor: a key or alias of :func:`specfast.data.sensors`, in any case, or any other name.
        level: ``"L1"`` (radiance) or ``"L2"`` (reflectance).
        gsd: ground sampling distance in m.
        wavelength, fwhm: [C] nm.
        scale, offset: physical = stored / scale + offset.
        nodata: stored number that means "no measurement".
        variable: name of the cube, in formats that hold several arrays.
        out_of_range: what to do about bands outside 350-2550 nm that are not marked bad: ``"raise"``; ``"drop"``, mark
            them bad (they keep their number, and ``sample`` leaves them out); ``"keep"``.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is damaged, empty, of no known format, or contradicts itself; the cube cannot be told from
            other arrays; a wavelength is out of range.
        ImportError: the format's library is not installed; names the extra.
        ValueError: an argument is none of its choices.
    """
    if out_of_range not in _OUT_OF_RANGE:
        raise ValueError(f"out_of_range: expected one of {', '.join(_OUT_OF_RANGE)}; got {out_of_range!r}")
    level = None if level is None else canonical_level(level)
    path = Path(path)
    where = str(path)
    reader, stored = read_stored(path, _request(variable, sensor, wavelength, fwhm))
    bands = stored.cube.shape[0]
    if 0 in stored.cube.shape:
        raise DataError(f"{where}: expected at least one band and one pixel, got shape {tuple(stored.cube.shape)}")
    notes = list(stored.notes)
    centers, widths = _given_tables(stored, wavelength, fwhm, bands, where, notes)
    name, table = _sensor(sensor, stored, path, centers, bands, notes)
    good = _good_bands(stored, bands, where)
    if table is not None:
        centers, widths, good = _fill_from_table(table, centers, widths, good, bands, notes)
    if centers is not None:
        widths = _filled_widths(centers, widths, notes)
        good = _in_range(centers, good, out_of_range, where, notes)
    level = level or stored.level or _level_from_name(path, notes)
    scale, offset, level = _scaling(stored, scale, offset, level, table if sensor else None, notes)
    return SpectralImage(
        stored.cube,
        name=path.stem,
        path=path,
        reader=reader,
        wavelength=centers,
        fwhm=widths,
        gsd=_gsd(gsd, stored, table, notes),
        sensor=name,
        level=level,
        good_bands=good,
        nodata=stored.nodata if nodata is None else nodata,
        scale=scale,
        offset=offset,
        crs=stored.crs,
        transform=stored.transform,
        assumptions=notes,
        look_at_pixels=True,
    )


def _request(variable: str | None, sensor: str | None, wavelength, fwhm) -> Request:
    counts = {int(np.size(table)) for table in (wavelength, fwhm) if table is not None}
    likely = () if sensor is None else {len(s) for s in sensors().values() if find_sensor(sensor, len(s)) is s}
    return Request(variable, tuple(counts), tuple(likely))


def _given_tables(stored: StoredScene, wavelength, fwhm, bands: int, where: str, notes: list[str]):
    """Return centers and widths in nm from the caller, or else from the file; None where neither has them."""
    file_centers = checked_table(stored.wavelength, "wavelength", bands, where)
    file_widths = checked_table(stored.fwhm, "fwhm", bands, where)
    if wavelength is not None:
        file_centers = None
    elif file_centers is not None:
        with np.errstate(divide="ignore", invalid="ignore"):  # a band without wavelength holds 0
            file_centers, file_widths, unit_notes = to_nanometers(file_centers, file_widths, stored.unit)
        notes += unit_notes
    centers = checked_table(wavelength, "wavelength", bands, where)
    widths = checked_table(fwhm, "fwhm", bands, where)
    if centers is not None:
        centers, widths, unit_notes = to_nanometers(centers, widths, "nm")
        notes += [f"argument {note}" for note in unit_notes]
    if widths is None:
        widths = file_widths
    return file_centers if centers is None else centers, widths


def _sensor(
    asked: str | None, stored: StoredScene, path: Path, centers, bands: int, notes: list[str]
) -> tuple[str | None, Sensor | None]:
    """Return the sensor's name and, if it is a known one, its table."""
    told = (stored.sensor or "").strip() if asked is None else asked.strip()
    if asked is None and told.lower() in _SAYS_NOTHING:
        told = ""
    known = find_sensor(told, bands) if told else None
    if known is None and asked is None:
        known = _recognized(path, centers, notes)
    if known is not None:
        return known.key, known
    if not told or (asked is None and len(told) > _LONGEST_NAME):
        return None, None
    if told.lower() not in _SAYS_NOTHING:
        notes.append(f"sensor {told!r} is none of specfast.data.sensors(): no table adds what the file lacks")
    return told, None


def _recognized(path: Path, centers, notes: list[str]) -> Sensor | None:
    """Return the sensor that the wavelengths or the file's name tell."""
    match = None if centers is None else sensor_from_wavelength(centers)
    if match is not None:
        found, difference = match
        notes.append(f"sensor: not given, {found.key} since all wavelengths fit its table within {difference:.2g} nm")
        return found
    found = sensor_from_file_name(path.name)
    if found is not None:
        notes.append(f"sensor: not given, {found.key} from the file's name")
    return found


def _good_bands(stored: StoredScene, bands: int, where: str) -> np.ndarray | None:
    good = checked_table(stored.good_bands, "bad band list", bands, where)
    return None if good is None else good > 0


def _fill_from_table(table: Sensor, centers, widths, good, bands: int, notes: list[str]):
    """Return centers, widths and good bands with what a sensor's table adds where the file has nothing."""
    if centers is None:
        if len(table) != bands:
            others = [s.key for s in sensors().values() if len(s) == bands]
            hint = f"; tables with {bands} bands: {', '.join(others)}" if others else ""
            notes.append(f"wavelength: unknown, since {table.key} has {len(table)} bands and the file {bands}{hint}")
            return centers, widths, good
        centers = table.wavelength.copy()
        notes.append(f"wavelength: not in the file, from the table {table.key} ({table.source})")
    nearest = np.arange(bands)
    if len(table) != bands or not np.abs(table.wavelength - centers).max() <= TOLERANCE:
        nearest = np.abs(table.wavelength - centers[:, None]).argmin(axis=1)
    difference = np.abs(table.wavelength[nearest] - centers).max()
    if not difference <= TOLERANCE:
        notes.append(f"sensor: wavelengths in the file are up to {difference:.3g} nm off the table {table.key}")
    else:
        known = table.fwhm[nearest]
        if widths is None and np.isfinite(known).all():
            widths = known.copy()
            notes.append(f"fwhm: not in the file, from the table {table.key} ({table.source})")
        if good is None and not table.good_bands.all():
            good = table.good_bands[nearest]
            notes.append(f"good bands: not in the file; those that {table.key} leaves uncalibrated are taken as bad")
    return centers, widths, good


def _filled_widths(centers: np.ndarray, widths: np.ndarray | None, notes: list[str]) -> np.ndarray | None:
    """Return widths for all bands, estimated from the spacing where there is none."""
    unusable = np.ones(len(centers), dtype=bool) if widths is None else ~(np.isfinite(widths) & (widths > 0))
    if not unusable.any():
        return widths
    usable = np.isfinite(centers) & (centers > 0)
    spacing = estimate_fwhm(centers[usable])
    if spacing is None:
        return widths
    estimate = np.full(len(centers), np.nan)
    estimate[usable] = spacing
    if widths is None:
        low, high = spacing.min(), spacing.max()
        notes.append(f"fwhm: unknown, estimated from the bands' spacing ({low:.3g}-{high:.3g} nm)")
        return estimate
    notes.append(f"fwhm: unknown in {unusable.sum()} bands, estimated there from the bands' spacing")
    return np.where(unusable, estimate, widths)


def _in_range(centers: np.ndarray, good, out_of_range: str, where: str, notes: list[str]) -> np.ndarray | None:
    """Check the wavelengths of the good bands; return which bands are good then."""
    low, high = WAVELENGTH_RANGE
    outside = ~((centers >= low) & (centers <= high))
    if good is not None:
        outside &= good
    if not outside.any() or out_of_range == "keep":
        return good
    numbers = np.flatnonzero(outside)
    if out_of_range == "raise":
        shown = ", ".join(f"band {n} at {centers[n]:g} nm" for n in numbers[:5])
        more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        raise DataError(
            f"{where}: {shown}{more} (bands counted from 0) outside {low:.0f}-{high:.0f} nm; correct wavelength=, or "
            f"pass out_of_range='drop' to leave such bands out or 'keep' to keep them"
        )
    notes.append(f"{len(numbers)} bands outside {low:.0f}-{high:.0f} nm dropped: marked bad, as asked")
    return ~outside if good is None else good & ~outside


def _level_from_name(path: Path, notes: list[str]) -> str | None:
    level = level_from_text(path.stem)
    if level is not None:
        notes.append(f"level: {level}, from the file's name")
    return level


def _scaling(stored: StoredScene, scale, offset, level, asked: Sensor | None, notes: list[str]):
    """Return scale, offset and level; the sensor's own apply to integers of a sensor that the caller named."""
    own_scale, own_offset = stored.scale, stored.offset
    if asked is not None and asked.stored_scale is not None and stored.cube.dtype.kind in "iu" and own_scale is None:
        own_scale, own_offset = asked.stored_scale, asked.stored_offset
        if scale is None:
            notes.append(f"scale {own_scale:g}, offset {own_offset:g}: those of {asked.key} stored as integers")
        if level is None:
            level = asked.stored_level
            notes.append(f"level: {level}, that of {asked.key} stored as integers")
    own_scale, own_offset = 1.0 if own_scale is None else own_scale, 0.0 if own_offset is None else own_offset
    factor = stored.radiance_factor
    if factor != 1.0 and scale is None:
        if level == "L1":
            own_scale, own_offset = own_scale / factor, own_offset * factor
            notes.append(f"radiance: the file's unit converted to uW / (cm^2 nm sr), times {factor:g}")
        elif level is None:
            notes.append(f"scale: taken as it stands; with level='L1' values would be multiplied by {factor:g} (unit)")
    return own_scale if scale is None else scale, own_offset if offset is None else offset, level


def _gsd(asked: float | None, stored: StoredScene, table: Sensor | None, notes: list[str]) -> float | None:
    if asked is not None:
        return asked
    if stored.gsd is not None:
        return stored.gsd
    if table is None or table.gsd is None:
        return None
    hint = "; it depends on the flying height, pass gsd= if you know it" if table.airborne else ""
    notes.append(f"gsd: not in the file, {table.gsd:g} m as usual for {table.key}{hint}")
    return table.gsd
