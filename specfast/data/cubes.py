"""Where the stored numbers of an image lie: in memory, or in a file that is mapped anew for every read.

A cube has ``shape`` (bands, height, width), ``dtype``, and ``read(rows, columns, bands)``, which touches only the
window and the bands asked for and returns stored numbers [c, h, w]. Those of a mapped file are read when they are used;
the file is closed with them. Formats with a library of their own (GeoTIFF, HDF5) bring their own cubes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Which axis of a stored array is which, as in ("row", "column", "band").
AXES = ("band", "row", "column")


class Cube(Protocol):
    """What a reader hands over for its pixels."""

    shape: tuple[int, int, int]
    dtype: np.dtype

    def read(self, rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
        """Return stored numbers [c, h, w]; ``bands`` are whole numbers in any order."""


def cube_shape(shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[int, int, int]:
    """Return (bands, height, width) of an array whose axes are in another order."""
    return tuple(int(shape[axes.index(axis)]) for axis in AXES)


def read_array(array, axes: tuple[str, ...], rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
    """Return [c, h, w] of a NumPy or HDF5 array, read with plain slices where the bands are neighbors."""
    selection = {"row": rows, "column": columns, "band": _as_slice(bands)}
    order = None
    if selection["band"] is None:
        selection["band"] = bands
        if not (np.diff(bands) > 0).all():
            # HDF5 takes only increasing numbers without repeats.
            selection["band"], order = np.unique(bands, return_inverse=True)
    part = np.asarray(array[tuple(selection[axis] for axis in axes)])
    part = part.transpose([axes.index(axis) for axis in AXES])
    return part if order is None else part[order]


def _as_slice(bands: np.ndarray) -> slice | None:
    if len(bands) == 0:
        return slice(0, 0)
    first, last = int(bands[0]), int(bands[-1])
    return slice(first, last + 1) if np.array_equal(bands, np.arange(first, first + len(bands))) else None


class ArrayCube:
    """An array in memory."""

    def __init__(self, array: np.ndarray, axes: tuple[str, ...] = AXES, variable: str | None = None):
        self._array, self._axes, self.variable = array, axes, variable
        self.shape, self.dtype = cube_shape(array.shape, axes), array.dtype

    def read(self, rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
        return read_array(self._array, self._axes, rows, columns, bands)


@dataclass(frozen=True)
class MappedCube:
    """A plain binary file (ENVI, .npy)."""

    path: str
    dtype: np.dtype
    stored_shape: tuple[int, int, int]
    axes: tuple[str, ...]
    header_bytes: int = 0
    fortran_order: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return cube_shape(self.stored_shape, self.axes)

    def read(self, rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
        order = "F" if self.fortran_order else "C"
        array = np.memmap(self.path, self.dtype, "r", self.header_bytes, self.stored_shape, order)
        return read_array(array, self.axes, rows, columns, bands)
