"""Zarr version 3: a group with the array ``values`` (band, y, x), coordinates, and what else xarray can make use of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from specfast.infer.raster import Grid, Layer, Raster
from specfast.infer.writers.crs import as_wkt

ARRAY = "values"
_CHUNK = 2**22  # numbers of a chunk, at most; all bands of a cell lie in one
_SIDES = (1024, 512, 256, 128, 64, 32, 16)


def check(layer: Layer, grid: Grid) -> list[str]:
    _zarr()
    return []  # the reference system is kept as text, understood or not


def write(raster: Raster, path: Path, folder: Path, options) -> list[Path]:
    made, old = folder / "result.zarr", folder / "old.zarr"
    if old.exists() and not path.exists():  # a run was killed between the two renames below
        os.replace(old, path)
    for leftover in (made, old):
        shutil.rmtree(leftover, ignore_errors=True)
    layer, grid = raster.layer, raster.grid
    bands, height, width = raster.shape
    side = next((side for side in _SIDES if bands * side * side <= _CHUNK), _SIDES[-1])
    attributes = {f"specfast_{key}": value for key, value in raster.described().items()}
    root = _zarr().create_group(store=made, zarr_format=3, attributes=attributes)
    array = root.create_array(
        ARRAY,
        shape=raster.shape,
        chunks=(bands, min(side, height), min(side, width)),
        dtype=layer.dtype,
        fill_value=layer.nodata,
        dimension_names=("band", "y", "x"),
        attributes={"grid_mapping": "spatial_ref", "long_name": layer.quantity, "band_names": list(layer.bands)},
    )
    _write_georeference(root, grid)
    for start, rows in raster.strips(side):
        array[:, start : start + len(rows)] = np.ascontiguousarray(rows.transpose(1, 0, 2))
    # A folder cannot take the place of another in one step; the older one is gone only when the new one is there.
    if path.exists():
        os.replace(path, old)
    os.replace(made, path)
    shutil.rmtree(old, ignore_errors=True)
    return [path]


def _write_georeference(root, grid) -> None:
    """Centers of columns and rows where the grid is not turned, and the reference system as CF conventions name it."""
    attributes = {"crs": grid.crs, "crs_wkt": as_wkt(grid.crs)}
    if grid.transform is not None:
        a, b, c, d, e, f = grid.transform
        attributes["GeoTransform"] = " ".join(f"{value:.17g}" for value in (c, a, b, f, d, e))
        if b == d == 0:
            for name, values in (
                ("x", c + a * (np.arange(grid.width) + 0.5)),
                ("y", f + e * (np.arange(grid.height) + 0.5)),
            ):
                axis = root.create_array(name, shape=values.shape, dtype="float64", dimension_names=(name,))
                axis[:] = values
    known = {key: value for key, value in attributes.items() if value is not None}
    root.create_array("spatial_ref", shape=(), dtype="int32", attributes=known)


def _zarr():
    try:
        import zarr
    except ImportError as error:
        raise ImportError('Zarr needs zarr: pip install "specfast[zarr]"; or write .tif, .img or .npy') from error
    return zarr
