"""NumPy: OUT.npy and, since an array alone says nothing of itself, OUT.json beside it. Needs no extra."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from specfast.files import write_atomic
from specfast.infer.raster import Grid, Layer, Raster

_STRIP = 256


def check(layer: Layer, grid: Grid) -> list[str]:
    return []


def write(raster: Raster, path: Path, folder: Path, options) -> list[Path]:
    """Write [bands, height, width], or [height, width] for a class map."""
    made = folder / "result.npy"
    shape = raster.shape[1:] if raster.layer.kind == "classes" else raster.shape
    np.lib.format.open_memmap(made, "w+", raster.layer.dtype, shape)
    for start, rows in raster.strips(_STRIP):
        array = np.load(made, mmap_mode="r+")  # mapped for a strip only: the pages of a whole map would count as ours
        array.reshape(raster.shape)[:, start : start + len(rows)] = rows.transpose(1, 0, 2)
        array.flush()
    sidecar = path.with_suffix(".json")
    described = {**raster.described(), "nodata": 0 if raster.layer.nodata == 0 else "nan"}
    os.replace(made, path)
    write_atomic(sidecar, (json.dumps(described, indent=2) + "\n").encode())
    return [path, sidecar]
