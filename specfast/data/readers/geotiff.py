"""GeoTIFF whose bands carry tags: wavelength, fwhm, bbl, units (as EnMAP-Box and GDAL write them)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specfast.data.readers.georeference import gsd_of
from specfast.data.readers.header import level_from_text, numbers_of, text_of, with_spelling_mended
from specfast.data.readers.stored import Request, StoredScene
from specfast.data.readers.tiff_check import check_complete
from specfast.errors import DataError

_UNSCALED = 1.0
_REFLECTANCE_SCALE = 10_000.0


@dataclass(frozen=True)
class RasterCube:
    """A raster that rasterio reads; opened anew for every read, so that threads do not share it."""

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
        rasterio = _rasterio()
        if len(bands) == 0:
            return np.zeros((0, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        try:
            with open_raster(self.path) as raster:
                return raster.read([int(band) + 1 for band in bands], window=window)
        except rasterio.errors.RasterioError as error:
            raise OSError(str(error)) from error


def read(path: Path, request: Request) -> StoredScene:
    """Read the tags of the file and of its bands."""
    rasterio = _rasterio()
    check_complete(path)
    try:
        raster = open_raster(path)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: cannot be read as a GeoTIFF ({error}); was the file cut off?") from error
    with raster:
        dtypes = set(raster.dtypes)
        if len(dtypes) > 1:
            raise DataError(f"{path}: its bands are of different types: {', '.join(sorted(dtypes))}")
        cube = RasterCube(str(path), (raster.count, raster.height, raster.width), np.dtype(dtypes.pop()))
        scene = StoredScene(cube)
        _read_tags(raster, scene, str(path))
        _read_scaling(raster, scene)
        _read_georeference(raster, scene)
    return scene


def _rasterio():
    try:
        import rasterio
    except ImportError as error:
        raise ImportError('GeoTIFF needs rasterio: pip install "specfast[geo]"') from error
    return rasterio


def open_raster(path):
    """Return the open raster; that it has no georeference is no warning."""
    rasterio = _rasterio()
    with warnings.catch_warnings():
        # That a file has no georeference is no fault; the image's crs and transform say it.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)


def _read_tags(raster, scene: StoredScene, where: str) -> None:
    """Take wavelength, fwhm, bbl and units from the bands' tags, from GDAL's own, or from lists for the whole file."""
    per_band, notes = [], []
    for band in range(1, raster.count + 1):
        tags, mended = with_spelling_mended({**_gdal_tags(raster, band), **raster.tags(band)})
        per_band.append(tags)
        notes += [note for note in mended if note not in notes]
    whole, mended = with_spelling_mended({**raster.tags(), **raster.tags(ns="ENVI")})
    scene.notes += [note.replace("header key", "tag") for note in dict.fromkeys([*notes, *mended])]

    def table(key: str) -> np.ndarray | None:
        values = [tags.get(key) for tags in per_band]
        if any(value is not None for value in values):
            texts = [text_of(value) or "nan" for value in values]
            return numbers_of(" ".join(texts), key, where)
        return numbers_of(whole.get(key), key, where)

    scene.wavelength, scene.fwhm, scene.good_bands = table("wavelength"), table("fwhm"), table("bbl")
    if scene.good_bands is not None:
        scene.good_bands = np.where(np.isnan(scene.good_bands), 1.0, scene.good_bands)
    units = {text_of(tags.get("wavelength units")) for tags in per_band} - {None}
    if len(units) > 1:
        raise DataError(f"{where}: its bands give wavelengths in different units: {', '.join(sorted(units))}")
    scene.unit = units.pop() if units else text_of(whole.get("wavelength units"))
    scene.sensor = next((text_of(whole[key]) for key in ("sensor type", "sensor", "instrument") if key in whole), None)
    for key in ("description", "tifftag imagedescription", "title"):
        level = level_from_text(text_of(whole.get(key)) or "")
        if level and scene.level is None:
            scene.level = level
            scene.notes.append(f"level: {level}, from the tag {key!r}")
    scale = numbers_of(whole.get("reflectance scale factor"), "reflectance scale factor", where)
    if scale is not None:
        scene.scale, scene.level = float(scale[0]), "L2"


def _gdal_tags(raster, band: int) -> dict[str, str]:
    """Return the tags of GDAL's IMAGERY domain, in um, as ours in nm."""
    names = {"CENTRAL_WAVELENGTH_UM": "wavelength", "FWHM_UM": "fwhm"}
    tags = raster.tags(band, ns="IMAGERY")
    found = {names[key]: f"{float(value) * 1000:.10g}" for key, value in tags.items() if key in names}
    return found | {"wavelength units": "Nanometers"} if found else {}


def _read_scaling(raster, scene: StoredScene) -> None:
    scales, offsets = np.array(raster.scales), np.array(raster.offsets)
    if (scales != _UNSCALED).any() and (scales != 0).all():
        # 1 / 0.0001 is not quite 10000.
        scene.scale = np.array([float(f"{1 / scale:.12g}") for scale in scales])
        if scene.level is None and (scene.scale == _REFLECTANCE_SCALE).all():
            scene.level = "L2"
            scene.notes.append("level: L2, since the file's scale of 1/10000 is that of reflectance")
    if (offsets != 0).any():
        scene.offset = offsets
    values = {value for value in raster.nodatavals if value is not None}
    if len(values) > 1:
        scene.notes.append(f"nodata: the bands name several values, {min(values):g} taken")
    scene.nodata = min(values) if values else None


def _read_georeference(raster, scene: StoredScene) -> None:
    if raster.transform.is_identity:
        return
    scene.transform = tuple(raster.transform)[:6]
    if raster.crs is None:
        scene.notes.append("gsd: the transform has no reference system; its pixel size is not used")
        return
    scene.crs = raster.crs.to_string()
    geographic = raster.crs.is_geographic
    factor = 1.0 if geographic else float(raster.crs.linear_units_factor[1])
    scene.gsd, notes = gsd_of(scene.transform, degrees=geographic, meters_per_unit=factor)
    scene.notes += notes
