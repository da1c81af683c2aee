"""MATLAB files: up to version 7.2 by SciPy (the cube is loaded when first read), version 7.3 as HDF5 (windowed)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specfast.data.cubes import ArrayCube, Cube, cube_shape, read_array
from specfast.data.readers.discovery import FWHM_NAMES, GOOD_BAND_NAMES, WAVELENGTH_NAMES, axes_of, choose_cube, named
from specfast.data.readers.hdf5 import Hdf5Cube, attribute, datasets, open_hdf5
from specfast.data.readers.header import READ_KEYS, normalized_key, scene_fields
from specfast.data.readers.stored import Request, StoredScene
from specfast.errors import DataError

_CLASSES = {
    **{name: name for name in (f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))},
    "double": "float64",
    "single": "float32",
    "logical": "uint8",
}
_SMALL = 100_000  # numbers in an array that is loaded at once to see whether it is a table
_DEEPEST = 4  # structs within structs
_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_AT = 512  # bytes before the HDF5 part of a version 7.3 file


def read(path: Path, request: Request) -> StoredScene:
    """Find the cube and the tables, by name and length, in the file's variables and structs."""
    with path.open("rb") as file:
        head = file.read(_HDF5_AT + len(_HDF5))
    is_hdf5 = head.startswith(_HDF5) or head[_HDF5_AT:] == _HDF5
    contents = _Contents.of_hdf5(path) if is_hdf5 else _Contents.of_matlab5(path)
    where = str(path)
    tables = {name: v for name, v in contents.values.items() if _is_table(v)}
    wavelengths = named(tables, WAVELENGTH_NAMES)
    counts = request.band_counts or tuple(tables[name].size for name in wavelengths)
    name, notes = choose_cube(contents.shapes, counts or request.likely_counts, request.variable, where)
    axes, axis_notes = axes_of(contents.shapes[name], counts, where, likely=request.likely_counts)
    cube = contents.cube(name, axes)
    bands = cube.shape[0]

    def best(names: tuple[str, ...], beside: str = "") -> str | None:
        fits = [n for n in named(tables, names) if tables[n].size == bands]
        return next((n for n in fits if n.rpartition(".")[0] == beside), fits[0] if fits else None)

    # A struct that also holds the FWHM is the header of the scene; a lone vector may be rounded.
    widths = best(FWHM_NAMES)
    beside = widths.rpartition(".")[0] if widths else ""
    wavelength = best(WAVELENGTH_NAMES, beside)
    group = wavelength.rpartition(".")[0] if wavelength else ""
    header = _header(contents.values, group)
    header |= {"wavelength": tables.get(wavelength), "fwhm": tables.get(widths)}
    header["bbl"] = tables.get(best(GOOD_BAND_NAMES, group))
    fields = scene_fields(header, where)
    if fields.get("transform") and not _describes(header, cube):
        fields["transform"] = None
        fields["notes"].append("the map info is of a larger scene: only pixel size and reference system are used")
    fields["notes"] = notes + axis_notes + fields["notes"]
    return StoredScene(cube, **fields)


@dataclass
class _Contents:
    """Variables by name (``struct.field`` in structs): shapes of numeric arrays, and values of what is small."""

    path: Path
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    types: dict[str, np.dtype] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)  # arrays whose axes MATLAB 7.3 stores in reverse
    is_hdf5: bool = False

    @classmethod
    def of_matlab5(cls, path: Path) -> _Contents:
        import scipy.io

        contents, to_load = cls(path), []
        _check_complete(path)
        try:
            for name, shape, kind in scipy.io.whosmat(path):
                if kind in _CLASSES:
                    contents.shapes[name], contents.types[name] = shape, np.dtype(_CLASSES[kind])
                if kind in ("struct", "char") or (kind in _CLASSES and np.prod(shape) <= _SMALL):
                    to_load.append(name)
            # An empty list would load everything.
            loaded = scipy.io.loadmat(path, variable_names=to_load) if to_load else {}
        except Exception as error:  # SciPy's parser raises many types on damaged files
            raise DataError(f"{path}: cannot be read as a MATLAB file ({error}); was the file cut off?") from error
        for name in to_load:
            contents._add(name, loaded[name])
        return contents

    @classmethod
    def of_hdf5(cls, path: Path) -> _Contents:
        contents = cls(path, is_hdf5=True)
        with open_hdf5(path) as file:
            for full, item in datasets(file).items():
                name, kind = full.replace("/", "."), attribute(item, "MATLAB_class")
                if item.dtype.kind not in "iufb" or attribute(item, "MATLAB_empty"):
                    continue
                if kind == "char":
                    contents.values[name] = "".join(chr(code) for code in item[()].ravel(order="F"))
                    continue
                # MATLAB's first axis varies fastest, HDF5's last. Other programs' .mat files are as they look.
                if kind is not None:
                    contents.turned.add(name)
                contents.shapes[name] = item.shape if kind is None else item.shape[::-1]
                contents.types[name] = item.dtype
                if item.size <= _SMALL:
                    contents.values[name] = item[()]
        return contents

    def cube(self, name: str, axes: tuple[str, ...]) -> Cube:
        if self.is_hdf5:
            turned = name in self.turned
            stored, stored_axes = (self.shapes[name][::-1], axes[::-1]) if turned else (self.shapes[name], axes)
            return Hdf5Cube(str(self.path), name.replace(".", "/"), stored, self.types[name], stored_axes)
        if "." in name:
            return ArrayCube(self.values[name], axes, name)
        return _MatlabCube(str(self.path), name, self.shapes[name], self.types[name], axes)

    def _add(self, name: str, value, depth: int = 0) -> None:
        if not isinstance(value, np.ndarray):
            return
        if value.dtype.names:
            if value.size == 1 and depth < _DEEPEST:
                for key in value.dtype.names:
                    self._add(f"{name}.{key}", value.flat[0][key], depth + 1)
        elif value.dtype.kind == "U":
            self.values[name] = "".join(value.ravel().tolist())
        elif value.dtype.kind in "iufb":
            self.shapes[name], self.values[name], self.types[name] = value.shape, value, value.dtype


@dataclass
class _MatlabCube:
    """A variable of a file up to version 7.2, which cannot be read in parts: loaded whole on first use, then kept."""

    path: str
    variable: str
    stored_shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str, ...]
    _array: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return cube_shape(self.stored_shape, self.axes)

    def read(self, rows: slice, columns: slice, bands: np.ndarray) -> np.ndarray:
        if self._array is None:
            import scipy.io

            try:
                self._array = scipy.io.loadmat(self.path, variable_names=[self.variable])[self.variable]
            except Exception as error:  # as in of_matlab5
                raise OSError(str(error)) from error
            if self._array.dtype.kind == "c":
                raise ValueError("complex numbers are not supported")
        return read_array(self._array, self.axes, rows, columns, bands)


def _check_complete(path: Path) -> None:
    """Raise if a variable of a version 5 file reaches beyond its end; SciPy finds out only when loading."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(128)
        if not start.startswith(b"MATLAB 5"):
            return
        order = "<" if start[126:128] == b"IM" else ">"
        position = 128
        while position < size:
            tag = file.read(8)
            length = struct.unpack(f"{order}I", tag[4:])[0] if len(tag) == 8 else size
            position += 8 + length
            if position > size:
                raise DataError(f"{path}: the file was cut off: its last variable is not complete")
            file.seek(position)


def _is_table(value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and 1 < value.size == max(value.shape)


def _header(values: Mapping[str, object], group: str) -> dict[str, object]:
    """Return what a struct (or the file) says in the words of an ENVI header."""
    header: dict[str, object] = {}
    for name, value in values.items():
        if name.rpartition(".")[0] == group:
            key = normalized_key(name.rpartition(".")[2])
            if key in READ_KEYS:
                header[key] = value
    return header


def _describes(header: Mapping[str, object], cube: Cube) -> bool:
    """Whether the header's size, if it tells one, is that of the cube."""
    _, height, width = cube.shape
    sizes = ((header.get("lines"), height), (header.get("samples"), width))
    return all(told is None or (np.size(told) == 1 and float(np.ravel(told)[0]) == found) for told, found in sizes)
