"""The first of two passes over a scene: a scorer learns the background from blocks of pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from specfast.data import SpectralImage
from specfast.errors import DataError
from specfast.infer.reading import batches, read_ahead, valid_of
from specfast.infer.windows import Windows


def fit_scorer(scorer, image: SpectralImage, *, window: int = 256, progress: bool = False):
    """Fit a scorer to all valid pixels of a scene, read window by window, each pixel once.

    Args:
        scorer: offers ``prepare(sample) -> [F, h, w]`` (NaN where invalid), ``fit(blocks of [n, F])`` and
            ``needs_model``, as those of specfast.tasks.anomaly do.
        image: the scene.
        window: side of windows in pixels.
        progress: show a bar.

    Returns:
        The scorer.

    Raises:
        DataError: no pixel of the scene is valid, or as ``SpectralImage.sample``.
    """
    windows = Windows(*image.shape[1:], side=window, overlap=0.0, even=bool(scorer.needs_model))

    def blocks() -> Iterator[np.ndarray]:
        found = False
        with tqdm(total=len(windows), desc="fit", unit="window", disable=not progress) as bar:
            for batch in read_ahead([image], batches(windows, 1)):
                bar.update()
                if not valid_of(batch.samples[0]).any():
                    continue
                row, column, _, _ = batch.boxes[0]
                # even windows overlap by a few pixels, which count for the first that holds them
                above, left = _end_before(windows.rows, row, window), _end_before(windows.columns, column, window)
                cube = scorer.prepare(batch.samples[0])[:, above - row :, left - column :]
                pixels = cube.reshape(len(cube), -1)
                finite = np.isfinite(pixels).all(axis=0)
                if finite.any():
                    found = True
                    yield (pixels if finite.all() else pixels[:, finite]).T
        if not found:
            raise DataError(f"{image.name}: no pixel of the scene is valid")

    scorer.fit(blocks())
    return scorer


def _end_before(starts: tuple[int, ...], start: int, side: int) -> int:
    """Where the window before the one at ``start`` ends, or ``start`` if there is none."""
    number = starts.index(start)
    return max(start, starts[number - 1] + side) if number else start
