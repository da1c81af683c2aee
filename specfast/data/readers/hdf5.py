"""What NetCDF-4 and MATLAB 7.3 share: HDF5 arrays, opened anew for every read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specfast.data.cubes import cube_shape, read_array
from specfast.errors import DataError

# what h5py raises of damaged files, depending on where the damage is
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Hdf5Cube:
    """An array of an HDF5 file, by its full name."""

    path: str
    variable: str
    stored_shape: tuple[int, int, int]
    dtype: np.dtype
    axes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return cube_shape(self.stored_shape, self.axes)

    def read(self, rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
        with open_hdf5(Path(self.path)) as file:
            return read_array(file[self.variable], self.axes, rows, columns, bands)


def h5py_module():
    """Return h5py, or raise an ImportError that says how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py: pip install "specfast[hdf]"') from error
    return h5py


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator:
    """Yield the open file; damage, found at once or while it is read, is a DataError."""
    h5py = h5py_module()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as HDF5 ({reason}); was the file cut off?") from error


def datasets(file) -> dict[str, object]:
    """Return all arrays of numbers or text by full name; MATLAB's and HDF5's own tables of references are left out."""
    h5py, found = h5py_module(), {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):
            found[name] = item

    file.visititems(visit)
    return found


def attribute(item, name: str):
    """Return an attribute as a number or text, or None."""
    value = item.attrs.get(name)
    if value is None or isinstance(value, h5py_module().Empty):
        return None
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size == 1 else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
