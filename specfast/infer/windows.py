"""Where windows lie on a scene: equally large, overlapping, evenly spread, on the patch grid where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Windows:
    """Windows that cover a scene of any size; where the scene ends before a window does, the window is cut.

    Attributes:
        height, width: of the scene in pixels.
        side: of a window in pixels.
        overlap: the least share of a window that its neighbor covers too, 0 to below 1.
        align: windows start at multiples of this many pixels (the patch size, so that patches of neighbors coincide).
        margin: pixels at a window's border that do not count where another window sees them better.
        even: all windows are equally large; the last ones are moved back to end with the scene, and the others with
            them. If not, windows that need no overlap lie side by side, and the last ones are cut.

    Raises:
        ValueError: a number is out of range, the side is no multiple of ``align``, or the margins of two neighbors
            would leave a gap between them.
    """

    height: int
    width: int
    side: int
    overlap: float = 0.25
    align: int = 1
    margin: int = 0
    even: bool = True

    def __post_init__(self):
        for name in ("height", "width", "side", "align"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1 pixel, got {getattr(self, name)}")
        if self.side % self.align:
            raise ValueError(f"window: expected a multiple of the patch size {self.align}, got {self.side} pixels")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: expected a share from 0 to below 1, got {self.overlap}")
        if self.margin < 0 or self.margin % self.align:
            raise ValueError(f"margin: expected 0 or a multiple of {self.align} pixels, got {self.margin}")
        if self.margin and self.side - self.step < 2 * self.margin:
            raise ValueError(
                f"margin: {self.margin} pixels on both sides would leave gaps between windows of {self.side} pixels "
                f"that overlap by {self.side - self.step}; expected at most {(self.side - self.step) // 2}"
            )

    @property
    def step(self) -> int:
        """The most pixels from one window to the next, a multiple of ``align``."""
        return max(1, int(self.side * (1 - self.overlap) + 1e-6) // self.align) * self.align

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First rows of the bands of windows, ascending."""
        return self._starts(self.height)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """First columns of the windows of a band, ascending."""
        return self._starts(self.width)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def box(self, row: int, column: int) -> Box:
        """(row, column, height, width) of the window that starts there, cut at the scene's end."""
        return row, column, min(self.side, self.height - row), min(self.side, self.width - column)

    def finished(self, number: int) -> int:
        """Rows that no window below band ``number`` covers."""
        return self.rows[number + 1] if number + 1 < len(self.rows) else self.height

    def first_band_over(self, row: int) -> int:
        """Number of the first band of windows that covers ``row``."""
        return next(number for number, start in enumerate(self.rows) if start + self.side > row)

    def in_cells(self, stride: int) -> Windows:
        """The same windows on a grid whose cells are ``stride`` x ``stride`` pixels.

        Raises:
            ValueError: windows would not start at cells.
        """
        if self.align % stride:
            raise ValueError(f"stride: expected a divisor of {self.align} pixels, got {stride}")
        return Windows(
            -(-self.height // stride),
            -(-self.width // stride),
            self.side // stride,
            self.overlap,
            self.align // stride,
            self.margin // stride,
            self.even,
        )

    def _starts(self, length: int) -> tuple[int, ...]:
        if length <= self.side:
            return (0,)
        if not self.even and not self.overlap and not self.margin:
            return tuple(range(0, length, self.side))
        last = -(-(length - self.side) // self.align)
        gaps = -(-last // (self.step // self.align))
        return tuple(self.align * (number * last // gaps) for number in range(gaps + 1))
