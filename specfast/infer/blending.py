"""Overlapping windows become one map, a band of rows at a time.

Every cell of the map is the weighted mean of all windows that see it. Weights fall off smoothly (a raised cosine) from
a window's center to its border, so that one window's say ends where its neighbor's is full, and the map has no seams.
The mean is updated with each window (West 1979, Commun. ACM 22): where all windows agree the result is their value, bit
for bit, whatever the weights.
"""

from __future__ import annotations

import numpy as np

from specfast.infer.windows import Windows


def profile(side: int, before: int = 0, after: int = 0) -> np.ndarray:
    """Weights along one side of a window, float32 [side]: a raised cosine, 0 in the margins, else above 0."""
    inner = side - before - after
    weights = np.zeros(side, dtype=np.float32)
    weights[before : side - after] = np.sin(np.pi * (np.arange(inner) + 0.5) / inner) ** 2
    return weights


class RowBlender:
    """The rows that are being worked on: running means of K channels, and which cells are valid.

    Memory is K times a band of windows, whatever the scene's height.

    Args:
        channels: K.
        windows: in cells of the map.
        first: the row to begin with; windows above may be added too, their rows before ``first`` are dropped.
    """

    def __init__(self, channels: int, windows: Windows, first: int = 0):
        self.windows = windows
        self._top = first
        height = min(windows.side, windows.height)
        self._mean = np.zeros((channels, height, windows.width), dtype=np.float32)
        self._total = np.zeros((height, windows.width), dtype=np.float32)
        self._valid = np.zeros((height, windows.width), dtype=bool)

    def add(self, row: int, column: int, values: np.ndarray | None, valid: np.ndarray) -> None:
        """Blend in a window.

        Args:
            row, column: its first cell.
            values: float32 [K, h, w], or None if no cell is valid.
            valid: bool [h, w].
        """
        cut = max(0, self._top - row)
        _, _, height, width = self.windows.box(row, column)
        if cut >= height:
            return
        rows = slice(row + cut - self._top, row + height - self._top)
        columns = slice(column, column + width)
        self._valid[rows, columns] |= valid[cut:height, :width]
        if values is None:
            return
        weight = np.outer(
            self._profile(row, self.windows.height)[cut:height], self._profile(column, self.windows.width)[:width]
        )
        total = self._total[rows, columns]
        total += weight
        share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
        mean = self._mean[:, rows, columns]
        change = values[:, cut:height, :width] - mean
        change[:, weight == 0] = 0  # whatever a margin holds: NaN times 0 would be NaN
        change *= share
        mean += change

    def take(self, until: int) -> tuple[np.ndarray, np.ndarray]:
        """Return and forget the rows before ``until``: float32 [K, n, W] and bool [n, W]."""
        count = until - self._top
        values, valid = self._mean[:, :count].copy(), self._valid[:count].copy()
        for buffer in (self._mean, self._total[None], self._valid[None]):
            kept = buffer.shape[1] - count
            buffer[:, :kept] = buffer[:, count:].copy()
            buffer[:, kept:] = 0
        self._top = until
        return values, valid

    def _profile(self, start: int, length: int) -> np.ndarray:
        """Weights of the window's rows or columns; where the scene ends, no other window sees a margin better."""
        side, margin = self.windows.side, self.windows.margin
        return profile(side, margin if start else 0, margin if start + side < length else 0)
