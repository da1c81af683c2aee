"""Readers, one file a format. A new format is a new file here and a row in :data:`FORMATS`.

A reader's module offers ``read(path, request) -> StoredScene``. It reads metadata only, takes them as they stand in the
file, and leaves units, defaults and checks that hold for every format to :mod:`specfast.data.opening`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specfast.data.readers.envi import find_header, is_header
from specfast.data.readers.stored import Request, StoredScene
from specfast.errors import DataError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Format:
    """A format: the name of its module, how it is recognized, and what it is called."""

    name: str
    matches: Callable[[bytes, Path], bool]
    title: str


# The first that matches the file's beginning (512 bytes or more) and path reads it.
FORMATS = (
    Format("npy", lambda head, path: head.startswith(b"\x93NUMPY"), "NumPy array (.npy)"),
    Format("geotiff", lambda head, path: head.startswith(_TIFF), "GeoTIFF (.tif)"),
    Format("mat", lambda head, path: head.startswith(b"MATLAB") or path.suffix.lower() == ".mat", "MATLAB file (.mat)"),
    Format("netcdf", lambda head, path: head.startswith(_HDF5), "NetCDF-4 or HDF5 (.nc, .h5)"),
    Format("envi", lambda head, path: is_header(head) or find_header(path) is not None, "ENVI (.hdr)"),
)


def read_stored(path: Path, request: Request) -> tuple[str, StoredScene]:
    """Return the name of the format and the scene as stored.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is empty, of no known format, damaged, or lacks what its format needs.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the file of a scene")
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise DataError(f"{path}: the file is empty")
    for entry in FORMATS:
        if entry.matches(head, path):
            reader = importlib.import_module(f"specfast.data.readers.{entry.name}")
            return entry.name, reader.read(path, request)
    titles = ", ".join(entry.title for entry in FORMATS)
    hint = "; NetCDF-3 must be converted to NetCDF-4" if head.startswith(b"CDF") else ""
    hint = hint or "; an ENVI data file needs its header (.hdr) beside it"
    raise DataError(f"{path}: not one of the formats {titles}{hint}")
