"""NetCDF-4 and HDF5: the layouts of EMIT and AVIRIS-3, and any other file with one cube and a table of wavelengths.

EMIT (L1B, L2A): ``reflectance`` or ``radiance`` [downtrack, crosstrack, bands] at the root, tables in the group
``sensor_band_parameters``. AVIRIS-3: group ``reflectance`` or ``radiance`` with the cube [wavelength, northing,
easting] and its tables. The pixels of EMIT lie in the sensor's own grid: the map grid in its attributes is that of the
lookup table, not theirs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from specfast.data.readers.discovery import FWHM_NAMES, GOOD_BAND_NAMES, WAVELENGTH_NAMES, axes_of, choose_cube, named
from specfast.data.readers.georeference import gsd_of
from specfast.data.readers.hdf5 import Hdf5Cube, attribute, datasets, open_hdf5
from specfast.data.readers.header import level_from_text
from specfast.data.readers.stored import Request, StoredScene
from specfast.data.sensors import find_sensor
from specfast.data.units import radiance_factor
from specfast.errors import DataError

_SENSOR_ATTRIBUTES = ("sensor", "instrument", "sensor_type", "title")
_CRS_ATTRIBUTES = ("spatial_ref", "crs_wkt")


def read(path: Path, request: Request) -> StoredScene:
    """Read the names, shapes and attributes of the arrays, and the tables of bands."""
    with open_hdf5(path) as file:
        found = datasets(file)
        numeric = {name: item for name, item in found.items() if item.dtype.kind in "iufb"}
        tables = {name: item for name, item in numeric.items() if item.size == max(item.shape, default=0) > 1}
        wavelengths = named(tables, WAVELENGTH_NAMES)
        counts = request.band_counts or tuple(tables[name].size for name in wavelengths)
        shapes = {name: item.shape for name, item in numeric.items()}
        name, notes = choose_cube(shapes, counts or request.likely_counts, request.variable, str(path))
        item = numeric[name]
        labels = _dimensions(item)
        axes, axis_notes = axes_of(item.shape, counts, str(path), likely=request.likely_counts, labels=labels)
        cube = Hdf5Cube(str(path), name, item.shape, item.dtype, axes)
        scene = StoredScene(cube, notes=notes + axis_notes)

        def table(names: tuple[str, ...]):
            fits = [n for n in named(tables, names) if tables[n].size == cube.shape[0]]
            # The cube's own group first.
            fits.sort(key=lambda n: n.rpartition("/")[0] != name.rpartition("/")[0])
            return tables[fits[0]] if fits else None

        wavelength, fwhm, good = table(WAVELENGTH_NAMES), table(FWHM_NAMES), table(GOOD_BAND_NAMES)
        scene.wavelength, scene.fwhm, scene.good_bands = (_values(t) for t in (wavelength, fwhm, good))
        scene.unit = None if wavelength is None else _text(attribute(wavelength, "units"))
        _read_attributes(file, item, name, scene)
        _read_georeference(found, item, axes, scene)
    return scene


def _dimensions(item) -> tuple[str, ...]:
    names = []
    for dimension in item.dims:
        scales = [scale.name for scale in dimension.values() if scale.name]
        names.append((scales[0] if scales else dimension.label or "").rpartition("/")[2])
    return tuple(names)


def _values(item) -> np.ndarray | None:
    return None if item is None else np.asarray(item[()], dtype=np.float64).ravel()


def _text(value) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _number(value, name: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: attribute {name} is {value!r}; expected a number") from None


def _read_attributes(file, item, name: str, scene: StoredScene) -> None:
    where = f"{file.filename}: {name}"
    fill, missing, scale, offset = (
        _number(attribute(item, key), key, where)
        for key in ("_FillValue", "missing_value", "scale_factor", "add_offset")
    )
    scene.nodata = fill if fill is not None else missing
    if scale:
        scene.scale = float(f"{1 / scale:.12g}")
    scene.offset = offset
    texts = [text for key in _SENSOR_ATTRIBUTES if (text := _text(attribute(file, key)))]
    scene.sensor = next((text for text in texts if find_sensor(text)), texts[0] if texts else None)
    factor = radiance_factor(_text(attribute(item, "units")))
    if factor is not None:
        scene.radiance_factor, scene.level = factor, "L1"
    for text in (name.replace("/", " "), _text(attribute(item, "long_name")), _text(attribute(file, "title"))):
        scene.level = scene.level or level_from_text(text or "")


def _read_georeference(found: dict, item, axes: tuple[str, ...], scene: StoredScene) -> None:
    """Take the transform from the CF grid mapping, and the reference system with it."""
    wanted = _text(attribute(item, "grid_mapping"))
    mappings = {name: other for name, other in found.items() if _transform(other) is not None}
    mapping = next((other for name, other in mappings.items() if wanted and name.endswith(wanted)), None)
    mapping = mapping if mapping is not None else next(iter(mappings.values()), None)
    if mapping is None:
        return
    scene.crs = next((text for key in _CRS_ATTRIBUTES if (text := _text(attribute(mapping, key)))), None)
    scene.transform = _transform(mapping)
    geographic = (scene.crs or "").upper().startswith(("GEOG", "EPSG:4326")) or "latitude_longitude" in str(
        attribute(mapping, "grid_mapping_name")
    )
    scene.gsd, notes = gsd_of(scene.transform, degrees=geographic)
    scene.notes += notes


def _transform(item) -> tuple[float, ...] | None:
    """Return GDAL's six numbers (origin first) in the order of SpectralImage.transform."""
    value = attribute(item, "GeoTransform")
    if value is None:
        return None
    try:
        x, a, b, y, d, e = (float(v) for v in (value.split() if isinstance(value, str) else value))
    except (TypeError, ValueError):
        return None
    return a, b, x, d, e, y
