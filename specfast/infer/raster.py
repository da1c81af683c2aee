"""What a scene becomes: layers on a grid, and the rows on disk that writers turn into files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """Where the cells of a layer lie.

    Attributes:
        height, width: cells.
        crs: coordinate reference system as text (EPSG code or WKT), or None.
        transform: (a, b, c, d, e, f) as in SpectralImage, of cells, or None.
        cell: side of a cell in pixels of the scene.
    """

    height: int
    width: int
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    cell: int = 1

    @classmethod
    def of(cls, image, cell: int = 1) -> Grid:
        """The grid of a SpectralImage, or of its patches of ``cell`` x ``cell`` pixels."""
        transform = image.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (a * cell, b * cell, c, d * cell, e * cell, f)
        return cls(-(-image.shape[1] // cell), -(-image.shape[2] // cell), image.crs, transform, cell)


@dataclass(frozen=True)
class Layer:
    """One file's worth of bands.

    Attributes:
        kind: ``"classes"`` (one band of class numbers), ``"probabilities"``, ``"continuous"`` or ``"embedding"``.
        bands: names of the bands.
        dtype: NumPy name of the stored numbers.
        nodata: number of cells without data; 0 in class maps, else NaN.
        classes: names of classes 1, 2, ... of a class map.
        colors: (red, green, blue), 0-255, of the same classes; none leaves the map without a color table.
        quantity: what the numbers are, with their unit.
    """

    kind: str
    bands: tuple[str, ...]
    dtype: str = "float32"
    nodata: float = float("nan")
    classes: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    quantity: str = ""

    def row_bytes(self, width: int) -> int:
        return len(self.bands) * width * np.dtype(self.dtype).itemsize


def class_layer(names: tuple[str, ...], colors: tuple[Color, ...] = ()) -> Layer:
    """A class map of names; uint8 as long as the numbers fit."""
    dtype = "uint8" if len(names) < 256 else "uint16"
    return Layer("classes", ("class",), dtype, 0.0, names, colors, "class")


@dataclass(frozen=True)
class Raster:
    """A layer whose rows lie in a plain file, as [row][band][column].

    Attributes:
        tags: what else a file should say of itself, as text.
    """

    path: Path
    layer: Layer
    grid: Grid
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return len(self.layer.bands), self.grid.height, self.grid.width

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows as stored, [n, bands, width]: a map of the file that is closed with the array."""
        stop = min(stop, self.grid.height)
        offset = start * self.layer.row_bytes(self.grid.width)
        shape = (stop - start, len(self.layer.bands), self.grid.width)
        return np.memmap(self.path, self.layer.dtype, "r", offset, shape)

    def strips(self, height: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows, ``height`` at a time: (first row, [n, bands, width])."""
        for start in range(0, self.grid.height, height):
            yield start, self.rows(start, start + height)

    def described(self) -> dict:
        """What any format should carry, as plain values; transform and crs where they are known."""
        layer, grid = self.layer, self.grid
        found = {
            "kind": layer.kind,
            "quantity": layer.quantity,
            "outputs": list(layer.classes or layer.bands),
            "cell_in_pixels": grid.cell,
            "crs": grid.crs,
            "transform": None if grid.transform is None else list(grid.transform),
            **self.tags,
        }
        return {key: value for key, value in found.items() if value not in (None, "")}


def preview(raster: Raster, most_pixels: int = 2**20, most_numbers: int = 2**25) -> np.ndarray:
    """Every n-th cell of a layer, [bands, h, w], so that it has no more than so many pixels and numbers."""
    bands, height, width = raster.shape
    most = max(1, min(most_pixels, most_numbers // bands))
    step = max(1, int(np.ceil(np.sqrt(height * width / most))))
    # Copied, since what is picked would keep the file open, once a row.
    picked = [np.array(raster.rows(row, row + 1)[0, :, ::step]) for row in range(0, height, step)]
    return np.stack(picked, axis=1)


def counts(raster: Raster, strip: int = 1024) -> tuple[int, list[int]]:
    """Cells with data and, for a class map, the cells of each class."""
    found = np.zeros(len(raster.layer.classes) + 1, dtype=np.int64)
    valid = 0
    for _, rows in raster.strips(strip):
        first = np.array(rows[:, 0])
        if raster.layer.kind == "classes":
            found += np.bincount(first.ravel(), minlength=len(found))
        else:
            valid += int(np.isfinite(first).sum())
    return (int(found[1:].sum()), found[1:].tolist()) if raster.layer.kind == "classes" else (valid, [])
