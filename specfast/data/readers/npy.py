"""NumPy arrays (.npy), mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from specfast.data.cubes import MappedCube
from specfast.data.readers.discovery import axes_of
from specfast.data.readers.stored import Request, StoredScene
from specfast.errors import DataError


def read(path: Path, request: Request) -> StoredScene:
    """Read the array's description."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array ({error}); was the file cut off?") from error
    if array.ndim != 3:
        raise DataError(f"{path}: expected an array with 3 axes, got shape {array.shape}")
    axes, notes = axes_of(array.shape, request.band_counts, str(path), likely=request.likely_counts)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    return StoredScene(MappedCube(str(path), array.dtype, array.shape, axes, array.offset, fortran), notes=notes)
