"""Windows of one scene, or of two dates of it, read ahead while the last ones are being computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from specfast.batch import SpectralSample
from specfast.data import SpectralImage
from specfast.errors import DataError
from specfast.infer.windows import Box, Windows
from specfast.infer.writers.crs import systems_differ

_SHIFT = 0.01  # pixels by which two dates may lie apart


@dataclass
class Batch:
    """Equally large windows of one band: number of the band, boxes, and samples (pairs for two dates)."""

    band: int
    boxes: list[Box]
    samples: list


def batches(windows: Windows, size: int, first_band: int = 0) -> Iterator[tuple[int, list[Box]]]:
    """Yield (band, boxes) of up to ``size`` windows of equal sizes; bands from top to bottom."""
    for band in range(first_band, len(windows.rows)):
        boxes = [windows.box(windows.rows[band], column) for column in windows.columns]
        while boxes:
            alike = [box for box in boxes[:size] if box[2:] == boxes[0][2:]]
            yield band, alike
            boxes = boxes[len(alike) :]


def read_ahead(images: Sequence[SpectralImage], planned: Iterable[tuple[int, list[Box]]]) -> Iterator[Batch]:
    """Read batches in order, one ahead of the caller."""

    def read(band: int, boxes: list[Box]) -> Batch:
        if len(images) == 1:
            return Batch(band, boxes, [images[0].sample(box) for box in boxes])
        return Batch(band, boxes, [tuple(image.sample(box) for image in images) for box in boxes])

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for band, boxes in planned:
            following = pool.submit(read, band, boxes)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def valid_of(sample: SpectralSample | tuple[SpectralSample, ...]) -> np.ndarray:
    """Bool [h, w]: pixels with data, at all dates."""
    dates = sample if isinstance(sample, tuple) else (sample,)
    return np.logical_and.reduce([date.valid.numpy() for date in dates])


def any_in_cells(valid: np.ndarray, stride: int) -> np.ndarray:
    """Whether any pixel of a cell of ``stride`` x ``stride`` is valid; the last cells may be cut."""
    if stride == 1:
        return valid
    height, width = (-(-length // stride) * stride for length in valid.shape)
    padded = np.zeros((height, width), dtype=bool)
    padded[: valid.shape[0], : valid.shape[1]] = valid
    return padded.reshape(height // stride, stride, width // stride, stride).any(axis=(1, 3))


def check_pair(before: SpectralImage, after: SpectralImage) -> None:
    """Raise DataError unless two dates show the same pixels, as far as their files tell."""
    names = f"{before.name} and {after.name}"
    if before.shape[1:] != after.shape[1:]:
        sizes = " and ".join(f"{image.shape[1]} x {image.shape[2]}" for image in (before, after))
        raise DataError(f"{names}: the two dates have {sizes} pixels; bring them to one grid first")
    if systems_differ(before.crs, after.crs):
        raise DataError(f"{names}: different reference systems, {before.crs} and {after.crs}; reproject one of them")
    if before.transform is None or after.transform is None:
        return
    a, b, _, d, e, _ = before.transform
    height, width = before.shape[1:]
    for row, column in ((0, 0), (0, width), (height, 0), (height, width)):
        (x0, y0), (x1, y1) = (_place(image.transform, row, column) for image in (before, after))
        shift = float(np.hypot(*np.linalg.solve([[a, b], [d, e]], [x1 - x0, y1 - y0])))
        if shift > _SHIFT:
            raise DataError(f"{names}: the two dates' grids lie up to {shift:.3g} pixels apart; bring them to one grid")


def identity_of(image: SpectralImage) -> dict:
    """What tells a scene, and how it is read, from others; as plain values."""
    tables = [image.wavelength, image.fwhm, image.good_bands, image.scale, image.offset]
    found = {
        "shape": image.shape,
        "facts": [image.variable, image.gsd, image.sensor, image.level, str(image.nodata), image.crs, image.transform],
        "tables": [None if table is None else np.asarray(table).tolist() for table in tables],
    }
    if image.files:
        stats = [(path, path.stat()) for path in image.files]
        return {**found, "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]}
    digest = hashlib.sha256()
    for row in range(0, image.shape[1], 64):
        digest.update(image.read((row, 0, min(64, image.shape[1] - row), image.shape[2])).data)
    return {**found, "content": digest.hexdigest()}


def _place(transform, row: float, column: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return a * column + b * row + c, d * column + e * row + f
