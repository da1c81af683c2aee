"""Label maps from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from specfast.errors import DataError

SUFFIXES = (".npy", ".mat", ".tif", ".tiff")
LARGEST_CLASS = 65535


def read_labels(
    path: str | Path, variable: str | None = None, *, nodata_as: int = 0, allow_empty: bool = False
) -> np.ndarray:
    """Read a label map.

    Args:
        path: ``.npy``, ``.mat`` (version 7.2 or older, and 7.3 with h5py), or GeoTIFF (with rasterio).
        variable: the map's name in a ``.mat`` file with several two-dimensional arrays.
        nodata_as: what pixels equal to a GeoTIFF's nodata value become; another number than 0 where 0 is a class, as in
            maps of changes.
        allow_empty: take a map without any class, as one of several may be.

    Returns:
        int64 [H, W], 0 is unlabelled.

    Raises:
        DataError: the file cannot be read, is no map of whole numbers from 0, or leaves open which array is meant.
        ImportError: the file's format needs an extra that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such label file")
    readers = {".npy": _read_npy, ".mat": _read_mat, ".tif": _read_tiff, ".tiff": _read_tiff}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of label file; expected one of {', '.join(SUFFIXES)}")
    given = {_read_mat: (variable,), _read_tiff: (nodata_as,)}.get(reader, ())
    labels = np.asarray(reader(path, *given))
    if labels.ndim != 2:
        raise DataError(f"{path}: expected a label map [height, width], got shape {list(labels.shape)}")
    if not (np.issubdtype(labels.dtype, np.integer) or np.issubdtype(labels.dtype, np.floating)):
        raise DataError(f"{path}: expected numbers of classes, got {labels.dtype}")
    if not np.isfinite(labels).all() or (labels != np.round(labels)).any():
        raise DataError(f"{path}: expected whole numbers (0 = unlabelled), got fractions, NaN or infinity")
    if labels.size and (labels.min() < 0 or labels.max() > LARGEST_CLASS):
        raise DataError(f"{path}: expected classes from 0 (unlabelled) up, got {labels.min():g} to {labels.max():g}")
    if not allow_empty and not (labels > 0).any():
        raise DataError(f"{path}: no pixel has a class (all are 0, which means unlabelled)")
    return labels.astype(np.int64)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from None


def _read_mat(path: Path, variable: str | None) -> np.ndarray:
    import scipy.io

    try:
        arrays = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:
        arrays = _read_mat_hdf5(path)
    except (ValueError, TypeError, OSError, scipy.io.matlab.MatReadError) as error:
        raise DataError(f"{path}: not a readable .mat file ({error})") from None
    maps = {name: value for name, value in arrays.items() if _is_map(value)}
    if variable is not None:
        if variable not in maps:
            raise DataError(f"{path}: no label map named {variable!r}; it holds {_names(maps)}")
        return maps[variable]
    if len(maps) != 1:
        raise DataError(f"{path}: expected one label map, found {_names(maps)}; name one (--labels-variable)")
    return next(iter(maps.values()))


def _read_mat_hdf5(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise ImportError(f'{path}: version 7.3 .mat files need h5py: pip install "specfast[hdf]"') from None
    with h5py.File(path) as file:  # MATLAB stores columns first
        return {name: value[()].T for name, value in file.items() if isinstance(value, h5py.Dataset)}


def _is_map(value) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "iuf" and min(value.shape) > 1


def _names(maps: dict) -> str:
    return ", ".join(sorted(maps)) or "none"


def _read_tiff(path: Path, nodata_as: int) -> np.ndarray:
    try:
        import rasterio
    except ImportError:
        raise ImportError(f'{path}: GeoTIFF labels need rasterio: pip install "specfast[geo]"') from None
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                if file.count != 1:
                    raise DataError(f"{path}: expected one band of labels, got {file.count}")
                labels, nodata = file.read(1), file.nodata
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: not a readable GeoTIFF ({error})") from None
    return labels if nodata is None else np.where(labels == nodata, np.int64(nodata_as), labels)
