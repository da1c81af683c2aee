"""Writers, one file a format, chosen by the ending of the file that is to be written.

A writer's module offers ``check(layer, grid)``, which raises before hours of work what would otherwise be raised after
them and returns what the format cannot say, in words; and ``write(raster, path, folder, options)``, which makes the
file in ``folder`` (on the same disk) and then renames it to ``path``, so that an older file is replaced by a complete
one or not at all. It returns all paths written.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from specfast.errors import DataError
from specfast.infer.raster import Grid, Layer, Raster

FORMATS = {
    "geotiff": (".tif", ".tiff"),
    "envi": (".img", ".hdr", ".dat", ".bil"),
    "zarr": (".zarr",),
    "npy": (".npy",),
}


@dataclass(frozen=True)
class Options:
    """How files are written.

    Attributes:
        cog: GeoTIFF as a Cloud Optimized GeoTIFF, with overviews.
    """

    cog: bool = False


def format_of(path: Path) -> str:
    """Name of the format that a file's ending tells.

    Raises:
        DataError: it tells none.
    """
    for name, endings in FORMATS.items():
        if path.suffix.lower() in endings:
            return name
    listed = ", ".join(f"{endings[0]} ({name})" for name, endings in FORMATS.items())
    raise DataError(f"{path}: its ending tells no format that can be written; expected one of {listed}")


def check(path: Path, layer: Layer, grid: Grid, options: Options) -> list[str]:
    """Raise what would make writing ``layer`` to ``path`` fail; return what the file will lack, in words.

    Raises:
        DataError: no such format, it cannot hold the layer, the folder is missing, or an option is not the format's.
        ImportError: the format's library is not installed; names the extra.
    """
    name = format_of(path)
    _check_header(name, path)
    if options.cog and name != "geotiff":
        raise DataError(f"{path}: a COG is a GeoTIFF; give a file that ends in .tif, or leave --cog out")
    replaceable = path.is_file() if name != "zarr" else (path / "zarr.json").is_file()
    if path.exists() and not replaceable:
        what = "a folder" if path.is_dir() else "a file"
        raise DataError(f"{path}: {what} that is no {path.suffix} is in the way; choose another name")
    return _module(name).check(layer, grid)


def files_of(path: Path) -> list[Path]:
    """What writing to ``path`` replaces, or would give another header, whether it exists or not."""
    envi = format_of(path) == "envi"
    return [path, *(path.with_suffix(ending) for ending in (".img", ".hdr") if envi)]


def copies(path: Path, options: Options) -> int:
    """Files as large as the rows, at most, that writing makes beside them: a COG is copied from a GeoTIFF."""
    return {"envi": 0, "geotiff": 2 if options.cog else 1}.get(format_of(path), 1)


def write(raster: Raster, path: Path, folder: Path, options: Options) -> list[Path]:
    """Write a raster to ``path`` by way of ``folder``; return all files made, ``path`` first."""
    return _module(format_of(path)).write(raster, path, folder, options)


def _check_header(name: str, path: Path) -> None:
    header, data = path.with_suffix(".hdr"), path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path
    if name == "envi" and header.exists() and not data.exists():
        raise DataError(
            f"{header}: may be the header of another file, since {data.name} is not there; choose another --out"
        )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"specfast.infer.writers.{name}")
