"""From windows to finished rows: read, predict, blend, hand over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from specfast.data import SpectralImage
from specfast.infer.blending import RowBlender
from specfast.infer.predictors import Predictor
from specfast.infer.reading import Batch, any_in_cells, batches, read_ahead, valid_of
from specfast.infer.spool import Spool
from specfast.infer.windows import Windows

_BAR = "{l_bar}{bar}| {n:.2f}/{total:.2f} MP [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class SceneRun:
    """One scene (or two dates of it) on its way through a predictor into a spool.

    Args:
        images: one, or two of equal size.
        predictor: see :class:`~specfast.infer.predictors.Predictor`.
        windows: in pixels.
        spool: entered; its finished rows are not computed again.

    Attributes:
        lacking: valid cells for which the predictor gave no finite number.
    """

    def __init__(self, images: Sequence[SpectralImage], predictor: Predictor, windows: Windows, spool: Spool):
        self.images, self.predictor, self.windows, self.spool = images, predictor, windows, spool
        self.cells = windows.in_cells(predictor.stride)
        self.lacking = 0

    def go(self, batch_size: int, progress: bool) -> int:
        """Compute the rows that are missing; return how many pixels they cover.

        Raises:
            ValueError: the predictor returned maps of another shape, or classes without a finite number.
        """
        if self.spool.rows == self.cells.height:
            return 0
        total, before = self.windows.height * self.windows.width, self._pixels_done()
        self._blender = RowBlender(len(self.predictor.outputs), self.cells, first=self.spool.rows)
        # bands above reach into the missing rows, too; they are computed once more
        planned = batches(self.windows, batch_size, self.cells.first_band_over(self.spool.rows))
        band = None
        with _bar(total, before, progress) as advance:
            for batch in read_ahead(self.images, planned):
                if band is not None and batch.band != band:
                    self._finish(band)
                    advance(self._pixels_done())
                band = batch.band
                self._blend(batch)
            self._finish(band)
            advance(total)
        return total - before

    def _pixels_done(self) -> int:
        return min(self.spool.rows * self.predictor.stride, self.windows.height) * self.windows.width

    def _blend(self, batch: Batch) -> None:
        """Predict the windows that hold data, and blend all in."""
        stride = self.predictor.stride
        valid = [valid_of(sample) for sample in batch.samples]
        present = [number for number, mask in enumerate(valid) if mask.any()]
        maps = {}
        if present:
            values = self.predictor([batch.samples[number] for number in present]).numpy()
            height, width = (-(-side // stride) for side in batch.boxes[0][2:])
            expected = (len(present), len(self.predictor.outputs))
            if values.ndim != 4 or values.shape[:2] != expected or values.shape[2] < height or values.shape[3] < width:
                raise ValueError(
                    f"{type(self.predictor).__name__}: expected maps {[*expected, height, width]}, "
                    f"got {list(values.shape)}"
                )
            maps = dict(zip(present, values, strict=True))
        for number, (row, column, _, _) in enumerate(batch.boxes):
            self._blender.add(row // stride, column // stride, maps.get(number), any_in_cells(valid[number], stride))

    def _finish(self, band: int) -> None:
        """Hand the rows that no later band covers to the spool."""
        first, until = self.spool.rows, self.cells.finished(band)
        if until <= first:
            return
        values, valid = self._blender.take(until)
        finite = np.isfinite(values).all(axis=0)
        lacking = int((valid & ~finite).sum())
        if self.predictor.kind != "classes":
            self.lacking += lacking
            values[:, ~(valid & finite)] = np.nan
            self.spool.append([values])
            return
        if lacking:
            raise ValueError(f"the model gave NaN or infinity in {lacking} valid pixels of rows {first} to {until - 1}")
        classes = np.where(valid, values.argmax(axis=0) + 1, 0)[None]
        values[:, ~valid] = np.nan
        self.spool.append([classes, values][: len(self.spool.layers)])


@contextlib.contextmanager
def _bar(total: int, initial: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """Show progress in megapixels; yields a function to call with the pixels done so far."""
    with tqdm(
        total=total / 1e6, initial=initial / 1e6, desc="map", unit=" MP", bar_format=_BAR, disable=not progress
    ) as bar:

        def advance(pixels: int) -> None:
            bar.update(pixels / 1e6 - bar.n)

        yield advance
