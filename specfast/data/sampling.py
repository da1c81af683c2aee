"""Which tile, window, bands and flips make sample number n: pure functions of (seed, n).

Every draw takes raw words of a counter-based generator (Philox4x64, Salmon et al. 2011) keyed by (seed, n), whose
stream is fixed for good; NumPy's higher-level methods may change between versions, so they are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_SAMPLE, _ORDER = 0, 1  # top word of the counter: separate streams for separate purposes
_CROP_TRIES = 16
_WANTED_VALID = 0.5


@dataclass(frozen=True)
class Draw:
    """A part of a tile: window (row, col, height, width), bands in ascending order, and flips of (rows, columns)."""

    window: tuple[int, int, int, int]
    bands: np.ndarray
    flip: tuple[bool, bool]


def _generator(seed: int, number: int, purpose: int) -> np.random.Philox:
    return np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose])


def _below(word: np.uint64, limit: int) -> int:
    """Return a number from 0 to limit - 1; its bias, limit / 2**64, is far below what any run could see."""
    return int(word) % limit


def tile_order(seed: int, epoch: int, tiles: int) -> np.ndarray:
    """Return the order of tiles in one pass over the data, int64 [tiles]."""
    return np.argsort(_generator(seed, epoch, _ORDER).random_raw(tiles), kind="stable")


def draw_sample(
    seed: int,
    number: int,
    shape: tuple[int, int, int],
    *,
    crop: int,
    bands: tuple[int, int] | None,
    flips: bool,
    valid: Callable[[], np.ndarray | None] = lambda: None,
) -> Draw:
    """Draw the part that sample ``number`` takes of a tile of ``shape`` (bands, height, width).

    Args:
        crop: side of the window in pixels; an axis of the tile that is shorter is taken whole.
        bands: smallest and largest size of the band subset, both drawn equally often; None for all bands.
        flips: flip rows and columns, each with probability one half.
        valid: returns the tile's valid mask [height, width], or None; called only if there is a window to choose. Of
            up to 16 windows the first with half of its pixels valid is taken, or else the one with the most.
    """
    generator = _generator(seed, number, _SAMPLE)
    count, height, width = shape
    flip_word, size_word = generator.random_raw(2)
    if bands is None:
        chosen = np.arange(count)
    else:
        low, high = bands
        size = min(count, low + _below(size_word, high - low + 1))
        chosen = np.sort(np.argsort(generator.random_raw(count), kind="stable")[:size])
    size_r, size_c = min(crop, height), min(crop, width)
    mask = valid() if (size_r, size_c) != (height, width) else None
    best, best_share = (0, 0), -1.0
    for words in generator.random_raw((1 if mask is None else _CROP_TRIES) * 2).reshape(-1, 2):
        row, col = _below(words[0], height - size_r + 1), _below(words[1], width - size_c + 1)
        share = 1.0 if mask is None else float(mask[row : row + size_r, col : col + size_c].mean())
        if share > best_share:
            best, best_share = (row, col), share
        if best_share >= _WANTED_VALID:
            break
    return Draw(
        window=(*best, size_r, size_c),
        bands=chosen,
        flip=(bool(int(flip_word) & 1), bool(int(flip_word) & 2)) if flips else (False, False),
    )
