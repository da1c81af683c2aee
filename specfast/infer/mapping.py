"""map_scene: a scene of any size through a predictor, into a file. Memory is that of a band of windows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np

from specfast import __version__
from specfast.data import SpectralImage
from specfast.errors import DataError
from specfast.infer import writers
from specfast.infer.predictors import Predictor
from specfast.infer.raster import Color, Grid, Layer, Raster, class_layer, counts, preview
from specfast.infer.reading import check_pair, identity_of
from specfast.infer.running import SceneRun
from specfast.infer.spool import Spool
from specfast.infer.windows import Windows


@dataclass
class SceneMap:
    """What :func:`map_scene` made.

    Attributes:
        files: paths written, the map first.
        layer, grid: what the map holds, and where its cells lie.
        cells: cells with data.
        class_cells: cells of each class by name; empty unless the map is one of classes.
        pixels: pixels of the scene that this run went through, in ``seconds``.
        resumed_rows: rows of cells that an interrupted run had finished.
        notes: what a user should know, in words.
        preview: [bands, h, w] as stored, every n-th cell, or None if not asked for.
    """

    files: list[Path]
    layer: Layer
    grid: Grid
    cells: int
    class_cells: dict[str, int]
    pixels: int
    seconds: float
    resumed_rows: int
    notes: list[str] = field(default_factory=list)
    preview: np.ndarray | None = None

    @property
    def megapixels_per_second(self) -> float:
        return self.pixels / 1e6 / max(self.seconds, 1e-9)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            "files": [str(path) for path in self.files],
            "kind": self.layer.kind,
            "outputs": list(self.layer.classes or self.layer.bands),
            "height": self.grid.height,
            "width": self.grid.width,
            "cell_in_pixels": self.grid.cell,
            "cells_with_data": self.cells,
            **({"class_cells": self.class_cells} if self.class_cells else {}),
            "seconds": round(self.seconds, 3),
            "megapixels_per_second": round(self.megapixels_per_second, 4),
            "resumed_rows": self.resumed_rows,
            "notes": self.notes,
        }


def map_scene(
    image: SpectralImage | Sequence[SpectralImage],
    predictor: Predictor,
    out: str | Path,
    *,
    probabilities: bool = False,
    window: int | None = None,
    overlap: float | None = None,
    batch_size: int | None = None,
    colors: Sequence[Color] = (),
    cog: bool = False,
    with_preview: bool = False,
    tags: dict[str, str] | None = None,
    progress: bool = False,
) -> SceneMap:
    """Map a scene window by window and write the result with the scene's georeference.

    Windows overlap and are blended, so that no seams show. The scene is read, and finished rows are written, a band of
    windows at a time; windows without a valid pixel are not computed. A run that was stopped, however, goes on when it
    is called again: finished rows lie in the folder OUT.partial until OUT itself is complete and takes its place.

    Args:
        image: the scene, or (before, after) for a predictor of two dates.
        predictor: see :class:`~specfast.infer.predictors.Predictor`.
        out: file to write: .tif (``pip install "specfast[geo]"``), .img or .hdr (ENVI), .zarr
            (``pip install "specfast[zarr]"``), or .npy.
        probabilities: for classes, write OUT_probabilities beside OUT: a float32 band a class.
        window, overlap, batch_size: side of windows in pixels, the share of it that a neighbor covers, and windows
            computed together; default the predictor's.
        colors: (red, green, blue), 0-255, of the classes.
        cog: a GeoTIFF becomes a Cloud Optimized GeoTIFF.
        with_preview: keep a coarse version of the map.
        tags: text that goes with the map, such as the model's name.
        progress: show a bar with the time left and megapixels a second.

    Returns:
        What was written. Class maps hold class number + 1 of ``predictor.outputs`` and 0 where there is no data; other
        maps are float32 with NaN there.

    Raises:
        DataError: the scene lacks metadata or cannot be read, two dates do not fit each other, no pixel is valid, the
            disk is too small, ``out`` has no known ending, or it belongs to the scene.
        ImportError: the library of the format is missing; names the extra.
        ValueError: an option is out of range, or the predictor returned maps of another shape, or NaN for a class.
    """
    started = time.perf_counter()
    images = (image,) if isinstance(image, SpectralImage) else tuple(image)
    out = Path(out)
    if len(images) != predictor.dates:
        raise ValueError(f"image: expected {predictor.dates} for {type(predictor).__name__}, got {len(images)}")
    if len(images) == 2:
        check_pair(*images)
    batch_size = predictor.batch_size if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1 window, got {batch_size}")
    if probabilities and predictor.kind != "classes":
        raise ValueError(f"probabilities: only for predictors of classes; got one of kind {predictor.kind!r}")
    windows = Windows(
        *images[0].shape[1:],
        side=window or predictor.window,
        overlap=predictor.overlap if overlap is None else overlap,
        align=predictor.align,
        margin=predictor.margin,
        even=not predictor.pixelwise,
    )
    grid = Grid.of(images[0], predictor.stride)
    layers, paths = _layers(predictor, probabilities, tuple(colors)), _paths(out, probabilities)
    options = writers.Options(cog)
    _check_apart(images, paths)
    for layer, path in zip(layers, paths, strict=True):
        notes = writers.check(path, layer, grid, options)  # the same for all
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "version": __version__,
        "predictor": [type(predictor).__name__, predictor.identity, predictor.kind, list(predictor.outputs)],
        "windows": [*astuple(windows), predictor.stride, batch_size],
        "layers": [layer.kind for layer in layers],
        "scenes": [identity_of(one) for one in images],
    }
    with Spool(out, layers, grid, settings, writers.copies(out, options)) as spool:
        resumed = spool.rows
        if spool.discarded:
            notes.append("an interrupted run with other settings was found; begun anew")
        if resumed:
            notes.append(f"went on after row {resumed} of {grid.height} of an interrupted run")
        run = SceneRun(images, predictor, windows, spool)
        pixels = run.go(batch_size, progress)
        if run.lacking:
            notes.append(f"{run.lacking} valid cells got no finite number and hold no data")
        rasters = [Raster(spool.path(number), layer, grid, dict(tags or {})) for number, layer in enumerate(layers)]
        cells, class_cells = counts(rasters[0])
        if not cells:
            spool.remove()
            raise DataError(f"{images[0].name}: no pixel of the scene is valid, so there is nothing to map")
        coarse = preview(rasters[0]) if with_preview else None
        files = []
        for raster, path in zip(rasters, paths, strict=True):
            files += writers.write(raster, path, spool.folder, options)
        spool.remove()
    return SceneMap(
        files=files,
        layer=layers[0],
        grid=grid,
        cells=cells,
        class_cells=dict(zip(layers[0].classes, class_cells, strict=True)),
        pixels=pixels,
        seconds=time.perf_counter() - started,
        resumed_rows=resumed,
        notes=notes,
        preview=coarse,
    )


def _check_apart(images: Sequence[SpectralImage], paths: Sequence[Path]) -> None:
    """Raise DataError if a result would take the place of a scene, or of the header of one."""
    own = {path for image in images for path in image.files}
    for made in (made for path in paths for made in writers.files_of(path)):
        if made.resolve() in own:
            raise DataError(f"{made}: belongs to a scene that is read; choose another --out")


def _layers(predictor: Predictor, probabilities: bool, colors: tuple[Color, ...]) -> list[Layer]:
    if predictor.kind != "classes":
        return [Layer(predictor.kind, predictor.outputs, quantity=predictor.quantity)]
    layers = [class_layer(predictor.outputs, colors)]
    if probabilities:
        layers.append(Layer("probabilities", predictor.outputs, quantity="probability"))
    return layers


def _paths(out: Path, probabilities: bool) -> list[Path]:
    return [out, out.with_name(f"{out.stem}_probabilities{out.suffix}")] if probabilities else [out]
