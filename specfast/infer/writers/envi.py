"""ENVI: a header and a plain binary file, interleaved by line; class maps as an ENVI classification."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from specfast.files import write_atomic
from specfast.infer.raster import Grid, Layer, Raster
from specfast.infer.writers.crs import as_wkt, lost, map_info, zone_and_datum

CODES = {"uint8": 1, "float32": 4, "uint16": 12}


def check(layer: Layer, grid: Grid) -> list[str]:
    notes = lost(grid, as_wkt(grid.crs, esri=True) or zone_and_datum(grid.crs))
    if grid.transform is not None and map_info(grid) is None:
        notes.append("an ENVI header cannot say where a sheared grid lies; its transform is left out of the file")
    return notes


def write(raster: Raster, path: Path, folder: Path, options) -> list[Path]:
    """Write OUT.img and OUT.hdr, whichever of the two ``path`` names; other endings of the data file are kept."""
    data = path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path
    header = path.with_suffix(".hdr")
    # The rows are an ENVI file as they are. Between the two renames a new header may stand beside older numbers, so
    # that the header goes last: a size that does not fit it is refused by readers, and a killed run does it again.
    made = folder / "result.img"
    made.unlink(missing_ok=True)
    try:
        os.link(raster.path, made)
    except OSError:  # not every file system has hard links
        shutil.copyfile(raster.path, made)
    os.replace(made, data)
    write_atomic(header, _header(raster).encode())
    return [data, header]


def _header(raster: Raster) -> str:
    layer, grid = raster.layer, raster.grid
    wkt = as_wkt(grid.crs, esri=True)
    classes = bool(layer.classes) and layer.kind == "classes"
    entries = {
        "description": f"{{{_plain(layer.quantity or layer.kind)} (specfast)}}",
        "samples": grid.width,
        "lines": grid.height,
        "bands": len(layer.bands),
        "header offset": 0,
        "file type": "ENVI Classification" if classes else "ENVI Standard",
        "data type": CODES[layer.dtype],
        "interleave": "bil",
        "byte order": int(sys.byteorder == "big"),
        "data ignore value": "0" if layer.nodata == 0 else "nan",
        "map info": None if (info := map_info(grid)) is None else f"{{{info}}}",
        "coordinate system string": None if wkt is None else f"{{{wkt}}}",
        "band names": _listed(layer.bands),
    }
    if classes:
        entries["classes"] = len(layer.classes) + 1
        entries["class names"] = _listed(("no data", *layer.classes))
    if layer.colors:
        entries["class lookup"] = _listed(value for color in ((0, 0, 0), *layer.colors) for value in color)
    for key, value in raster.described().items():
        if key not in ("crs", "transform", "outputs"):
            entries[f"specfast {key.replace('_', ' ')}"] = _plain(str(value))
    return "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in entries.items() if value is not None)


def _listed(values) -> str:
    return "{" + ", ".join(_plain(str(value)) for value in values) + "}"


def _plain(text: str) -> str:
    """Without what would end an item, a list or a line of the header."""
    return re.sub(r"[{},=\s]+", " ", text).strip()
