"""GeoTIFF and COG: tiled, compressed, with reference system, nodata, color table and names.

Class names go to the band's tags (``class_1 = ...``), which travel with the file, and to OUT.tif.aux.xml, where GDAL
and with it QGIS look for category names.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

from specfast.files import write_atomic
from specfast.infer.raster import Grid, Layer, Raster
from specfast.infer.writers.crs import lost, parsed_crs

BLOCK = 256  # pixels
_TAG = "SPECFAST_"


def check(layer: Layer, grid: Grid) -> list[str]:
    _rasterio()
    return lost(grid, parsed_crs(grid.crs))


def write(raster: Raster, path: Path, folder: Path, options) -> list[Path]:
    rasterio = _rasterio()
    made = folder / "result.tif"
    with warnings.catch_warnings():
        # A scene without georeference gives a map without one, as told in the scene's assumptions.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        _write_tiles(rasterio, raster, made)
        if options.cog:
            made = _as_cog(raster.layer, made, folder / "result_cog.tif")
    written = [path]
    aux = path.with_name(path.name + ".aux.xml")
    if raster.layer.kind == "classes":
        write_atomic(aux, _category_names(raster.layer))
        written.append(aux)
    else:
        aux.unlink(missing_ok=True)  # statistics or names of an older file
    os.replace(made, path)
    return written


def _write_tiles(rasterio, raster: Raster, path: Path) -> None:
    layer, grid = raster.layer, raster.grid
    bands = len(layer.bands)
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": grid.height,
        "width": grid.width,
        "dtype": layer.dtype,
        "nodata": layer.nodata,
        "crs": parsed_crs(grid.crs),
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "predictor": 3 if layer.dtype == "float32" else 1,
        "interleave": "band",
        "bigtiff": "if_safer",
    }
    if grid.transform is not None:
        profile["transform"] = rasterio.Affine(*grid.transform)
    with rasterio.open(path, "w", **profile) as file:
        file.update_tags(**_tags(raster))
        file.descriptions = layer.bands
        if layer.colors:
            table = {number: (*color, 255) for number, color in enumerate(layer.colors, start=1)}
            file.write_colormap(1, {0: (0, 0, 0, 0), **table})
        if layer.classes:
            file.update_tags(1, **{f"class_{number}": name for number, name in enumerate(layer.classes, start=1)})
        for start, rows in raster.strips(BLOCK):
            window = ((start, start + len(rows)), (0, grid.width))
            for band in range(bands):
                file.write(rows[:, band], band + 1, window=window)


def _as_cog(layer: Layer, source: Path, target: Path) -> Path:
    import rasterio.shutil

    rasterio.shutil.copy(
        source,
        target,
        driver="COG",
        compress="deflate",
        predictor="yes" if layer.dtype == "float32" else "no",
        overview_resampling="nearest" if layer.kind == "classes" else "average",
        bigtiff="if_safer",
    )
    return target


def _tags(raster: Raster) -> dict[str, str]:
    """SPECFAST_KIND and the like; the outputs' names are the bands' descriptions."""
    left_out = ("crs", "transform", "outputs")  # a GeoTIFF has its own place for these
    return {_TAG + key.upper(): str(value) for key, value in raster.described().items() if key not in left_out}


def _category_names(layer: Layer) -> bytes:
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in ("no data", *layer.classes):
        ElementTree.SubElement(names, "Category").text = name
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _rasterio():
    try:
        import rasterio
    except ImportError as error:
        raise ImportError('GeoTIFF needs rasterio: pip install "specfast[geo]"; or write .img or .npy') from error
    return rasterio
